//! Owns the uploads in parts that a bucket of S3 keeps and no listing shows: finding
//! and aborting them.
//!
//! The library below aborts an upload and does not list them, so the two requests that
//! list are ours (Amazon S3 API, `ListMultipartUploads` and `ListParts`), signed by the
//! library and sent by a client of the same settings.

use std::time::Duration;

use object_store::ClientOptions;
use object_store::aws::AmazonS3;
use object_store::client::{
    HttpClient, HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector,
};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::{Method, SignedUrlOptions, Signer};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::answer::Answer;
use super::error::Attempt;

/// How long a signed request is valid: longer than any attempt takes.
const VALID: Duration = Duration::from_secs(300);
/// Uploads told of at most: what is beyond is found once these are gone.
const UPLOADS_MAX: usize = 10_000;

/// The uploads of one bucket.
#[derive(Debug)]
pub(super) struct S3Uploads {
    bucket: AmazonS3,
    client: HttpClient,
}

/// An upload that was begun and has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Begun {
    /// The name its object would have, with the store's prefix.
    pub(super) key: String,
    #[serde(rename = "UploadId")]
    pub(super) id: String,
    initiated: String,
}

/// One answer of `ListMultipartUploads`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    upload: Vec<Begun>,
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: String,
    #[serde(default)]
    next_upload_id_marker: String,
}

/// One answer of `ListParts`. Archives have fewer parts than one answer holds.
#[derive(Debug, Deserialize)]
struct Parts {
    #[serde(default, rename = "Part")]
    parts: Vec<Part>,
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "Size")]
    bytes: u64,
}

impl Begun {
    /// When it was begun, in milliseconds since 1970, by the store's clock.
    pub(super) fn begun_ms(&self) -> Result<i64, Attempt> {
        let when = humantime::parse_rfc3339(&self.initiated);
        let since = when.ok().and_then(|when| when.duration_since(std::time::UNIX_EPOCH).ok());
        let since = since.ok_or_else(|| not_understood(&format!("time {:?}", self.initiated)))?;
        Ok(since.as_millis() as i64)
    }
}

impl Page {
    /// Where the next page begins, if there is one.
    fn next(&self) -> Option<[(&'static str, String); 2]> {
        let goes_on = self.is_truncated && !self.next_key_marker.is_empty();
        goes_on.then(|| {
            let (key, id) = (self.next_key_marker.clone(), self.next_upload_id_marker.clone());
            [("key-marker", key), ("upload-id-marker", id)]
        })
    }
}

impl S3Uploads {
    pub(super) fn new(bucket: AmazonS3, options: &ClientOptions) -> object_store::Result<Self> {
        Ok(Self { bucket, client: ReqwestConnector::default().connect(options)? })
    }

    /// The uploads whose names begin with `prefix`, [`UPLOADS_MAX`] and a page at most.
    pub(super) async fn begun(&self, prefix: &str) -> Result<Vec<Begun>, Attempt> {
        let (mut found, mut from) = (Vec::new(), None);
        loop {
            let mut query = vec![("uploads", String::new()), ("prefix", prefix.to_owned())];
            query.extend(from.into_iter().flatten());
            let page: Page = self.ask(&Path::default(), query).await?;
            from = page.next();
            found.extend(page.upload);
            if from.is_none() || found.len() >= UPLOADS_MAX {
                return Ok(found);
            }
        }
    }

    /// Bytes of the parts of `upload` that are there.
    pub(super) async fn bytes(&self, upload: &Begun) -> Result<u64, Attempt> {
        let query = vec![("uploadId", upload.id.clone())];
        let parts: Parts = self.ask(&Path::parse(&upload.key).map_err(defect)?, query).await?;
        Ok(parts.parts.iter().map(|part| part.bytes).sum())
    }

    /// Gives up the upload `id` of the object `path`, and the space of its parts.
    pub(super) async fn abort(&self, path: &Path, id: &str) -> Result<(), Attempt> {
        match self.bucket.abort_multipart(path, &id.to_owned()).await.map_err(Attempt::from) {
            Err(Attempt::NotFound) => Ok(()),
            other => other,
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        path: &Path,
        query: Vec<(&str, String)>,
    ) -> Result<T, Attempt> {
        let options = SignedUrlOptions::default().with_query(query);
        let url = self.bucket.signed_url_opts(Method::GET, path, VALID, &options).await?;
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.as_str().parse().map_err(defect)?;
        let failed = |error: object_store::client::HttpError| Attempt::Failed(Box::new(error));
        let response = self.client.execute(request).await.map_err(failed)?;
        let status = response.status().as_u16();
        let body = response.into_body().bytes().await.map_err(failed)?;
        let body = String::from_utf8_lossy(&body);
        match status {
            200 => {
                quick_xml::de::from_str(&body).map_err(|error| not_understood(&error.to_string()))
            }
            404 if body.contains("NoSuchUpload") => Err(Attempt::NotFound),
            _ => Err(Answer::of_status(status, &body, url.host_str()).into()),
        }
    }
}

fn defect(error: impl std::error::Error + Send + Sync + 'static) -> Attempt {
    Attempt::Defect(Box::new(error))
}

/// An answer that is none of S3's: whoever gives it does not list uploads.
fn not_understood(what: &str) -> Attempt {
    Attempt::Denied(format!("its list of uploads is not understood: {what}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Amazon documents the answer, shortened.
    const PAGE: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
  <Bucket>logs</Bucket><KeyMarker></KeyMarker><UploadIdMarker></UploadIdMarker>
  <NextKeyMarker>p/a&amp;b.tar.gz</NextKeyMarker><NextUploadIdMarker>YW55</NextUploadIdMarker>
  <MaxUploads>2</MaxUploads><IsTruncated>true</IsTruncated>
  <Upload><Key>p/a&amp;b.tar.gz</Key><UploadId>XMgbGlrZSBlbHZpbmc</UploadId>
    <Initiator><ID>arn</ID><DisplayName>me</DisplayName></Initiator>
    <Owner><ID>1</ID></Owner><StorageClass>STANDARD</StorageClass>
    <Initiated>2010-11-10T20:48:33.000Z</Initiated></Upload>
  <Upload><Key>p/c</Key><UploadId>b</UploadId><Initiated>2010-11-10T20:48:34Z</Initiated></Upload>
</ListMultipartUploadsResult>"#;

    #[test]
    fn a_page_of_uploads_is_read_and_says_where_the_next_begins() {
        let page: Page = quick_xml::de::from_str(PAGE).unwrap();
        let read: Vec<_> = page.upload.iter().map(|one| (&one.key[..], &one.id[..])).collect();
        assert_eq!(read, [("p/a&b.tar.gz", "XMgbGlrZSBlbHZpbmc"), ("p/c", "b")]);
        let times: Vec<_> = page.upload.iter().map(|one| one.begun_ms().unwrap()).collect();
        assert_eq!(times, [1_289_422_113_000, 1_289_422_114_000]);
        let next = page.next().unwrap();
        assert_eq!(next[0], ("key-marker", "p/a&b.tar.gz".to_owned()));
        assert_eq!(next[1], ("upload-id-marker", "YW55".to_owned()));
        let end = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>";
        let page: Page = quick_xml::de::from_str(end).unwrap();
        assert!(page.upload.is_empty() && page.next().is_none());
    }

    #[test]
    fn parts_are_added_up_and_a_strange_time_is_told() {
        let parts = "<ListPartsResult><IsTruncated>false</IsTruncated>\
            <Part><PartNumber>1</PartNumber><ETag>\"x\"</ETag><Size>8388608</Size></Part>\
            <Part><PartNumber>2</PartNumber><Size>2</Size></Part></ListPartsResult>";
        let parts: Parts = quick_xml::de::from_str(parts).unwrap();
        assert_eq!(parts.parts.iter().map(|part| part.bytes).sum::<u64>(), 8_388_610);
        let strange = Begun { key: "k".into(), id: "i".into(), initiated: "yesterday".into() };
        assert!(matches!(strange.begun_ms(), Err(Attempt::Denied(_))));
    }
}
