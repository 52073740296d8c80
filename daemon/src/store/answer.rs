//! Owns what a remote store said when it failed a request: status, code and
//! message, in one line that holds no credential.
//!
//! The library keeps its error types to itself, so this reads their text. A body
//! is never repeated whole: providers answer a bad signature with the key id, the
//! signature and the text that was signed. Of an address only the host is told,
//! since a query may hold a token.

use std::error::Error;

/// Longest message of a store that is repeated, in characters.
const MESSAGE_CHARS_MAX: usize = 200;

/// Where machines ask for the credentials of the role they run as.
const METADATA_HOSTS: [&str; 5] =
    ["169.254.169.254", "169.254.170.2", "169.254.170.23", "metadata", "metadata.google.internal"];

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The status of HTTP; none when nothing came back.
    pub(super) status: Option<u16>,
    /// The provider's own word for it, such as `NoSuchBucket`.
    pub(super) code: Option<String>,
    /// All of it in one line.
    pub(super) line: String,
}

/// What may be done after an answer that is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Another attempt may do better.
    Again,
    /// The range lies behind the object's end.
    OutOfRange,
    /// The same request will fail the same way.
    Never,
    /// There is no such bucket or container.
    NoBucket,
}

impl Answer {
    /// Reads an error of a remote store; `None` for any other error.
    pub(super) fn read(error: &(dyn Error + 'static)) -> Option<Self> {
        let texts: Vec<String> = chain(error).map(ToString::to_string).collect();
        let host = texts.iter().find_map(|text| host(text));
        for text in &texts {
            if let Some((status, body)) = text
                .split_once("non-2xx status code: ")
                .and_then(|(_, rest)| rest.split_once(": "))
                .and_then(|(status, body)| Some((status.get(..3)?.parse().ok()?, body)))
            {
                return Some(Self::of_status(status, body, host));
            }
        }
        let performed = texts.iter().any(|text| text.contains("Error performing "));
        let root = chain(error).last().map(ToString::to_string).unwrap_or_default();
        performed.then(|| {
            let from = host.map(|host| format!(" from {host}")).unwrap_or_default();
            let line = format!("no answer{from}: {}", one_line(&root));
            Self { status: None, code: None, line: with_hint(host, line) }
        })
    }

    /// What an answer of `host` with this status and body says.
    pub(super) fn of_status(status: u16, body: &str, host: Option<&str>) -> Self {
        let code = element(body, "Code").map(one_line);
        let mut line = host.map(|host| format!("{host} answered ")).unwrap_or_default();
        line += &status.to_string();
        if let Some(code) = &code {
            line = format!("{line} {code}");
        }
        if let Some(message) = element(body, "Message") {
            line = format!("{line}: {}", one_line(message));
        }
        Self { status: Some(status), code, line: with_hint(host, line) }
    }

    pub(super) fn verdict(&self) -> Verdict {
        if matches!(self.code.as_deref(), Some("NoSuchBucket" | "ContainerNotFound")) {
            return Verdict::NoBucket;
        }
        match self.status {
            None => Verdict::Again,
            Some(416) => Verdict::OutOfRange,
            Some(status) if Self::may_repeat(status) => Verdict::Again,
            Some(_) => Verdict::Never,
        }
    }

    /// Whether a request that was answered with `status` may do better.
    pub(super) fn may_repeat(status: u16) -> bool {
        match status {
            // Too slow, too early, too often: the store wants to be asked again.
            408 | 425 | 429 => true,
            // A redirect means the wrong region or address; 501 and 505, that the
            // server does not know the request.
            300..=499 | 501 | 505 => false,
            _ => true,
        }
    }
}

fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> + 'a {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// The host and port of the address in `Error performing GET http://h:1/x in ...`.
fn host(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("Error performing ")?;
    let address = rest.split(' ').nth(1)?;
    let (_, address) = address.split_once("://")?;
    let host = address.split(['/', '?']).next()?;
    host.rsplit('@').next().filter(|host| !host.is_empty())
}

/// The text of the first XML element of this name.
fn element<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    Some(rest.split_once("</")?.0)
}

/// Says what it means that a request for credentials failed.
fn with_hint(host: Option<&str>, line: String) -> String {
    match host {
        Some(host) if METADATA_HOSTS.contains(&host) => format!(
            "the environment holds no credentials, and this machine's metadata service gives none: {line}"
        ),
        _ => line,
    }
}

fn one_line(text: &str) -> String {
    // The second line of Azure's messages holds request ids and times.
    let text = text.trim().lines().next().unwrap_or_default();
    text.chars().filter(|c| !c.is_control()).take(MESSAGE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Said(String, #[source] Option<Box<Said>>);

    fn read(text: &str) -> Option<Answer> {
        Answer::read(&Said(text.to_owned(), None))
    }

    #[test]
    fn status_code_and_message_are_told_in_one_line_and_nothing_else_of_the_body() {
        let answer = read(
            "Error performing PUT http://127.0.0.1:5004/b/k?sig=secret in 2.1ms - Server returned \
             non-2xx status code: 403 Forbidden: <?xml version=\"1.0\"?>\n<Error>\
             <Code>SignatureDoesNotMatch</Code><Message>It does not match\nRequestId:7</Message>\
             <AWSAccessKeyId>AKIASECRET</AWSAccessKeyId></Error>",
        )
        .unwrap();
        assert_eq!(answer.status, Some(403));
        assert_eq!(
            answer.line,
            "127.0.0.1:5004 answered 403 SignatureDoesNotMatch: It does not match"
        );
        assert_eq!(answer.verdict(), Verdict::Never);
    }

    #[test]
    fn a_status_decides_whether_to_ask_again() {
        for (status, verdict) in [
            ("500 Internal Server Error", Verdict::Again),
            ("503 Service Unavailable", Verdict::Again),
            ("429 Too Many Requests", Verdict::Again),
            ("408 Request Timeout", Verdict::Again),
            ("416 Range Not Satisfiable", Verdict::OutOfRange),
            ("400 Bad Request", Verdict::Never),
            ("301 Moved Permanently", Verdict::Never),
            ("501 Not Implemented", Verdict::Never),
        ] {
            let answer = read(&format!("Server returned non-2xx status code: {status}: ")).unwrap();
            assert_eq!(answer.verdict(), verdict, "{status}");
            assert_eq!(answer.line, status[..3], "{status}");
        }
        for code in ["NoSuchBucket", "ContainerNotFound"] {
            let text = format!("non-2xx status code: 404 Not Found: <Error><Code>{code}</Code>");
            assert_eq!(read(&text).unwrap().verdict(), Verdict::NoBucket);
        }
    }

    #[test]
    fn no_answer_is_told_with_the_host_and_the_cause_at_the_bottom() {
        let cause = Said("connection refused".to_owned(), None);
        let below = Said("error sending request".to_owned(), Some(Box::new(cause)));
        let text = "Error performing GET https://u:p@h:1/x?sig=secret in 1s - HTTP error";
        let answer = Answer::read(&Said(text.to_owned(), Some(Box::new(below)))).unwrap();
        assert_eq!(answer.line, "no answer from h:1: connection refused");
        assert_eq!(answer.verdict(), Verdict::Again);
        let hidden = read("Error performing GET REDACTED in 1s - HTTP error: timed out").unwrap();
        assert!(hidden.line.starts_with("no answer: "), "{}", hidden.line);
    }

    #[test]
    fn missing_credentials_are_told_as_such() {
        let silent =
            "Error performing PUT http://169.254.169.254/latest/api/token in 1s - HTTP error";
        let refused = "Error performing GET http://metadata.google.internal/x in 1s - Server \
                       returned non-2xx status code: 403 Forbidden: no";
        for (text, host) in [(silent, "169.254.169.254"), (refused, "google.internal answered 403")]
        {
            let line = read(text).unwrap().line;
            assert!(line.contains("no credentials") && line.contains(host), "{line}");
        }
    }

    #[test]
    fn other_errors_are_left_alone() {
        assert_eq!(read("Permission denied (os error 13)"), None);
    }
}
