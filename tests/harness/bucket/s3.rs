//! Owns the protocol: the requests that tierd's client sends, over objects in memory.
//! What it does not know it refuses, so that nothing is taken for done that is not.
//! Signatures are not checked.

#![allow(clippy::disallowed_methods, reason = "a server keeps real time")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_NONE_MATCH, LAST_MODIFIED, RANGE};
use hyper::http::request::Parts;
use hyper::http::response::Builder;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload,
};
use percent_encoding::percent_decode_str;
use tokio::net::TcpListener;

use super::{BUCKET, Fate, Inner, locked, step};
use crate::counting::Op;

/// Names of one page of a listing: as S3.
const PAGE: usize = 1000;
/// What S3 says of an upload that ended, or never began.
const NO_UPLOAD: &str = "<Error><Code>NoSuchUpload</Code></Error>";

/// Uploads in parts, by their ids.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    begun: u64,
    pub(super) open: BTreeMap<String, Upload>,
}

/// An upload that has not ended.
#[derive(Debug)]
pub(super) struct Upload {
    key: String,
    /// When it began, as S3 writes it.
    began: String,
    parts: BTreeMap<u32, Bytes>,
}

impl Uploads {
    fn begin(&mut self, key: &str) -> String {
        self.begun += 1;
        let id = format!("upload-{}", self.begun);
        let began = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let upload = Upload { key: key.to_owned(), began, parts: BTreeMap::new() };
        self.open.insert(id.clone(), upload);
        id
    }

    /// Those of names that begin with `prefix`, as ListMultipartUploads has them.
    fn list(&self, prefix: &str) -> String {
        let mut list = String::new();
        for (id, Upload { key, began, .. }) in &self.open {
            if key.starts_with(prefix) {
                let key = escaped(key);
                list.push_str(&format!(
                    "<Upload><Key>{key}</Key><UploadId>{id}</UploadId>\
                     <Initiated>{began}</Initiated></Upload>"
                ));
            }
        }
        let name = "ListMultipartUploadsResult";
        format!("<{name}>{list}<IsTruncated>false</IsTruncated></{name}>")
    }
}

impl Upload {
    /// Its parts, as ListParts has them.
    fn list(&self) -> String {
        let mut list = String::new();
        for (number, part) in &self.parts {
            let size = part.len();
            list.push_str(&format!(
                "<Part><PartNumber>{number}</PartNumber><Size>{size}</Size></Part>"
            ));
        }
        format!("<ListPartsResult>{list}</ListPartsResult>")
    }
}

type Answer = Response<Full<Bytes>>;

/// Serves the bucket until it is dropped.
pub(super) async fn serve(listener: TcpListener, bucket: Arc<Inner>) {
    loop {
        // A client that is killed may be gone before it is accepted.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let bucket = Arc::clone(&bucket);
        let service = service_fn(move |request| {
            let bucket = Arc::clone(&bucket);
            async move { Ok::<_, Infallible>(answer(&bucket, request).await) }
        });
        tokio::spawn(async move {
            // It ends with the client's end, however that comes.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(bucket: &Arc<Inner>, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    // The client died while it sent.
    let Ok(body) = body.collect().await else { return plain(StatusCode::BAD_REQUEST, "cut off") };
    let asked = match Asked::read(&parts) {
        Ok(asked) => asked,
        Err(error) => return plain(StatusCode::NOT_IMPLEMENTED, &format!("{error:#}")),
    };
    let of = bucket.life().number;
    let fate = match asked.op.map(|op| step(op, &asked.key)) {
        None => bucket.read(),
        Some(Ok(step)) => bucket.write(step).await,
        Some(Err(error)) => return plain(StatusCode::BAD_REQUEST, &format!("{error:#}")),
    };
    let answer = match fate {
        Fate::Dead => None,
        Fate::DiesBefore => {
            bucket.kill(of);
            None
        }
        Fate::Lives => Some(asked.carry_out(bucket, &parts, body.to_bytes()).await),
        Fate::DiesLater(wait) => {
            let answer = asked.carry_out(bucket, &parts, body.to_bytes()).await;
            bucket.kill_later(of, wait);
            Some(answer)
        }
        Fate::DiesAfter => {
            asked.carry_out(bucket, &parts, body.to_bytes()).await.ok();
            bucket.kill(of);
            None
        }
    };
    match answer {
        Some(Ok(answer)) => answer,
        Some(Err(error)) => refused(&error),
        None => {
            bucket.never(of).await;
            plain(StatusCode::SERVICE_UNAVAILABLE, "nobody asks any more")
        }
    }
}

/// What a request wants.
struct Asked {
    /// The object; empty for a listing.
    key: String,
    query: HashMap<String, String>,
    /// What it changes, where it changes something.
    op: Option<Op>,
}

impl Asked {
    fn read(parts: &Parts) -> Result<Self> {
        let path = percent_decode_str(parts.uri.path()).decode_utf8()?;
        let rest = path.strip_prefix('/').and_then(|path| path.strip_prefix(BUCKET));
        let key = rest.context("no such bucket")?.trim_start_matches('/').to_owned();
        let query = parts.uri.query().unwrap_or_default().as_bytes();
        let query: HashMap<String, String> =
            url::form_urlencoded::parse(query).into_owned().collect();
        let has = |name| query.contains_key(name);
        let copies = parts.headers.contains_key("x-amz-copy-source");
        let op = match parts.method {
            Method::GET | Method::HEAD => None,
            Method::PUT if has("uploadId") && !copies => Some(Op::Part),
            Method::PUT if copies && query.is_empty() => Some(Op::Copy),
            Method::PUT if parts.headers.contains_key(IF_NONE_MATCH) => Some(Op::Create),
            Method::PUT if query.is_empty() => Some(Op::Put),
            Method::POST if has("uploads") => Some(Op::Multipart),
            Method::POST if has("uploadId") => Some(Op::Complete),
            Method::DELETE if query.is_empty() || has("uploadId") => Some(Op::Delete),
            _ => bail!("{} {}", parts.method, parts.uri),
        };
        Ok(Self { key, query, op })
    }

    async fn carry_out(&self, bucket: &Inner, parts: &Parts, body: Bytes) -> Result<Answer, Error> {
        let objects = bucket.objects();
        let key = || Path::parse(&self.key).map_err(Error::from);
        let upload = || self.query.get("uploadId").cloned().unwrap_or_default();
        let (status, xml) = match self.op {
            None if self.query.contains_key("uploads") => {
                let prefix = self.query.get("prefix").map_or("", String::as_str);
                (StatusCode::OK, locked(&bucket.uploads).list(prefix))
            }
            None if self.query.contains_key("uploadId") => {
                match locked(&bucket.uploads).open.get(&upload()) {
                    Some(upload) => (StatusCode::OK, upload.list()),
                    None => (StatusCode::NOT_FOUND, NO_UPLOAD.to_owned()),
                }
            }
            None if self.key.is_empty() => (StatusCode::OK, self.list(&*objects).await?),
            None => return get(&*objects, &key()?, parts).await,
            Some(op @ (Op::Put | Op::Create)) => {
                let mode = if op == Op::Create { PutMode::Create } else { PutMode::Overwrite };
                let put = objects.put_opts(&key()?, PutPayload::from(body), mode.into()).await?;
                return Ok(tagged(put.e_tag.as_deref()).body(Full::default()).unwrap_or_default());
            }
            Some(Op::Copy) => {
                let from = parts.headers.get("x-amz-copy-source").map(|from| from.as_bytes());
                let from = percent_encoding::percent_decode(from.unwrap_or_default());
                let from = from.decode_utf8_lossy();
                let from = from.trim_start_matches('/').strip_prefix(BUCKET).unwrap_or_default();
                objects.copy(&Path::parse(from)?, &key()?).await?;
                (StatusCode::OK, "<CopyObjectResult><ETag>\"0\"</ETag></CopyObjectResult>".into())
            }
            Some(Op::Delete) if self.query.contains_key("uploadId") => {
                match locked(&bucket.uploads).open.remove(&upload()) {
                    Some(_) => (StatusCode::NO_CONTENT, String::new()),
                    None => (StatusCode::NOT_FOUND, NO_UPLOAD.to_owned()),
                }
            }
            Some(Op::Delete) => {
                match objects.delete(&key()?).await {
                    Err(Error::NotFound { .. }) | Ok(()) => {}
                    Err(error) => return Err(error),
                }
                (StatusCode::NO_CONTENT, String::new())
            }
            Some(Op::Multipart) => {
                let id = locked(&bucket.uploads).begin(&self.key);
                let id = format!("<UploadId>{id}</UploadId>");
                let name = "InitiateMultipartUploadResult";
                (StatusCode::OK, format!("<{name}>{id}</{name}>"))
            }
            Some(Op::Part) => {
                let number = self.query.get("partNumber").and_then(|text| text.parse().ok());
                let mut uploads = locked(&bucket.uploads);
                let (Some(upload), Some(number)) = (uploads.open.get_mut(&upload()), number) else {
                    return Ok(plain(StatusCode::NOT_FOUND, NO_UPLOAD));
                };
                upload.parts.insert(number, body);
                let tag = number.to_string();
                return Ok(tagged(Some(&tag)).body(Full::default()).unwrap_or_default());
            }
            Some(Op::Complete) => {
                let Some(upload) = locked(&bucket.uploads).open.remove(&upload()) else {
                    return Ok(plain(StatusCode::NOT_FOUND, NO_UPLOAD));
                };
                let whole: PutPayload = upload.parts.into_values().collect();
                objects.put(&key()?, whole).await?;
                let name = "CompleteMultipartUploadResult";
                (StatusCode::OK, format!("<{name}><ETag>\"0\"</ETag></{name}>"))
            }
            Some(op) => return Ok(plain(StatusCode::NOT_IMPLEMENTED, &format!("{op:?}"))),
        };
        Ok(plain(status, &xml))
    }

    /// A page of names, as ListObjectsV2 has it.
    async fn list(&self, objects: &dyn ObjectStore) -> Result<String, Error> {
        let of = |name: &str| self.query.get(name).cloned().unwrap_or_default();
        let (prefix, delimiter) = (of("prefix"), of("delimiter"));
        let behind = of("continuation-token").max(of("start-after"));
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut all: Vec<ObjectMeta> =
            objects.list(Some(&Path::parse(folder)?)).try_collect().await?;
        all.sort_by(|a, b| a.location.as_ref().cmp(b.location.as_ref()));
        let (mut contents, mut folders) = (String::new(), BTreeSet::new());
        let (mut count, mut last) = (0, None);
        for object in all {
            let key = object.location.as_ref();
            let Some(rest) = key.strip_prefix(&prefix) else { continue };
            let inside = match rest.split_once('/') {
                Some((inside, _)) if !delimiter.is_empty() => Some(format!("{prefix}{inside}/")),
                _ => None,
            };
            let name = inside.clone().unwrap_or_else(|| key.to_owned());
            if name <= behind || inside.as_ref().is_some_and(|folder| folders.contains(folder)) {
                continue;
            }
            if count == PAGE {
                let token = format!(
                    "<NextContinuationToken>{}</NextContinuationToken>",
                    escaped(last.as_deref().unwrap_or_default())
                );
                contents.push_str(&token);
                break;
            }
            count += 1;
            last = Some(name);
            match inside {
                Some(folder) => drop(folders.insert(folder)),
                None => contents.push_str(&format!(
                    "<Contents><Key>{}</Key><LastModified>{}</LastModified><Size>{}</Size>\
                     <ETag>\"0\"</ETag></Contents>",
                    escaped(key),
                    // As S3, to the second.
                    object.last_modified.format("%Y-%m-%dT%H:%M:%S.000Z"),
                    object.size
                )),
            }
        }
        for folder in folders {
            let prefix = escaped(&folder);
            contents
                .push_str(&format!("<CommonPrefixes><Prefix>{prefix}</Prefix></CommonPrefixes>"));
        }
        Ok(format!("<ListBucketResult>{contents}</ListBucketResult>"))
    }
}

async fn get(objects: &dyn ObjectStore, key: &Path, parts: &Parts) -> Result<Answer, Error> {
    let head = parts.method == Method::HEAD;
    let range = parts.headers.get(RANGE).and_then(|range| range.to_str().ok());
    let range = match range.map(bounds).transpose() {
        Ok(range) => range,
        Err(error) => return Ok(plain(StatusCode::NOT_IMPLEMENTED, &error.to_string())),
    };
    let mut options = GetOptions::new().with_range(range.clone());
    options.head = head;
    let found = objects.get_opts(key, options).await?;
    let (meta, sent) = (found.meta.clone(), found.range.clone());
    let answer = tagged(meta.e_tag.as_deref())
        .header(LAST_MODIFIED, meta.last_modified.format("%a, %d %b %Y %H:%M:%S GMT").to_string())
        .header(CONTENT_LENGTH, sent.end - sent.start);
    let answer = match range {
        None => answer,
        Some(_) => {
            let place = format!("bytes {}-{}/{}", sent.start, sent.end - 1, meta.size);
            answer.status(StatusCode::PARTIAL_CONTENT).header(CONTENT_RANGE, place)
        }
    };
    let body = if head { Bytes::new() } else { found.bytes().await? };
    Ok(answer.body(Full::new(body)).unwrap_or_default())
}

/// The bounds of `bytes=0-9`; nothing else is asked for.
fn bounds(range: &str) -> Result<GetRange> {
    let (from, last) =
        range.strip_prefix("bytes=").and_then(|r| r.split_once('-')).context("no range")?;
    let (from, last): (u64, u64) = (from.parse()?, last.parse()?);
    ensure!(from <= last, "{range}");
    Ok(GetRange::Bounded(from..last + 1))
}

fn tagged(tag: Option<&str>) -> Builder {
    Response::builder().header(ETAG, format!("\"{}\"", tag.unwrap_or("0")))
}

fn plain(status: StatusCode, body: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *answer.status_mut() = status;
    answer
}

fn refused(error: &Error) -> Answer {
    let status = match error {
        Error::NotFound { .. } => StatusCode::NOT_FOUND,
        Error::AlreadyExists { .. } => StatusCode::PRECONDITION_FAILED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    plain(status, &error.to_string())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
