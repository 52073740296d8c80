//! Owns the clients of remote stores: where their settings come from, their time
//! limits, and what is fixed whatever the settings say.
//!
//! A URL names bucket and prefix; everything else is in the environment, under the
//! names that the provider's own tools use. Certificates are those of the system.
//!
//! | | `s3://` | `gs://` | `az://` |
//! |---|---|---|---|
//! | place | `AWS_REGION` | | `AZURE_STORAGE_ACCOUNT_NAME` |
//! | server | `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` | `GOOGLE_BASE_URL` | `AZURE_STORAGE_ENDPOINT` |
//! | `http://` | `AWS_ALLOW_HTTP=true` | `GOOGLE_ALLOW_HTTP=true` | `AZURE_ALLOW_HTTP=true` |
//! | credentials, the first that is set | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN` | `GOOGLE_SERVICE_ACCOUNT` (file) or `GOOGLE_SERVICE_ACCOUNT_KEY` | `AZURE_STORAGE_TOKEN` |
//! | | `AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN` | `GOOGLE_APPLICATION_CREDENTIALS` (file), or gcloud's own | `AZURE_STORAGE_ACCOUNT_KEY` |
//! | | `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` | the machine's service account | `AZURE_FEDERATED_TOKEN_FILE` or `AZURE_CLIENT_SECRET`, with `AZURE_CLIENT_ID`, `AZURE_TENANT_ID` |
//! | | `AWS_CONTAINER_CREDENTIALS_FULL_URI`, `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE` | | `AZURE_STORAGE_SAS_KEY` |
//! | | the machine's role | | the machine's managed identity |
//! | may do | get, put, delete, list, list and abort uploads | get, put, delete, list, abort uploads | the same |
//!
//! `~/.aws` is not read. Unfinished uploads cost space until they are dropped, see
//! [`super::Store::unfinished`] for who does.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};

use super::error::StoreError;
use super::s3_uploads::S3Uploads;
use super::url::{Bucket, Provider};
use super::{Below, COMPLETE_TIMEOUT};

/// Longest wait for a connection: who has not accepted by then is down, and
/// another attempt may reach another of the provider's addresses.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest time of a request inside the client. Not below any limit of this room,
/// which knows what it asks for and is the one to give up.
pub const CLIENT_TIMEOUT: Duration = COMPLETE_TIMEOUT;

/// How long a connection without work is kept. Servers close theirs after 20 s
/// and more; a create that meets a closing one fails and may not be repeated.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// What Azure's own tools call the address of the machine's managed identity,
/// without their usual prefix.
const IDENTITY_ENDPOINT: &str = "IDENTITY_ENDPOINT";

/// Variables that stores are set up by, as a process's environment has them.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// This process's own.
    #[must_use]
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// Every variable that `provider` may be set up by, as `K` names settings.
    fn settings<K: std::str::FromStr>(
        &self,
        provider: Provider,
    ) -> impl Iterator<Item = (K, &String)> {
        let ours = move |name: &str| name.starts_with(provider.variables());
        self.0
            .iter()
            .filter(move |(name, value)| ours(name) && !value.is_empty())
            .filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value)))
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// The names alone: values may be credentials.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What the client begins with; the environment may say otherwise.
fn beginnings() -> [(ClientConfigKey, String); 4] {
    let told = |duration| humantime::format_duration(duration).to_string();
    [
        (ClientConfigKey::AllowHttp, "false".to_owned()),
        (ClientConfigKey::ConnectTimeout, told(CONNECT_TIMEOUT)),
        (ClientConfigKey::Timeout, told(CLIENT_TIMEOUT)),
        (ClientConfigKey::PoolIdleTimeout, told(IDLE_TIMEOUT)),
    ]
}

/// None inside the client: this room repeats what may be repeated, counts it, and
/// never repeats a create.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// A client, and what it can do more than others.
type Connected = (Arc<dyn ObjectStore>, Below);

/// The client of `bucket`. Sends nothing.
pub(super) fn connect(bucket: &Bucket, environment: &Environment) -> Result<Connected, StoreError> {
    // Fails when the process has one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let made = match bucket.provider {
        Provider::S3 => s3(&bucket.name, environment),
        Provider::Gcs => gcs(&bucket.name, environment),
        Provider::Azure => azure(&bucket.name, environment),
    };
    made.map_err(|error| StoreError::Settings {
        store: bucket.to_string(),
        why: why(&error),
        variables: bucket.provider.variables(),
    })
}

/// What is wrong with the settings, without the library's words around it. An
/// address may hold a token and is not repeated.
fn why(error: &object_store::Error) -> String {
    let told = match error {
        object_store::Error::Generic { source, .. } => source.to_string(),
        other => other.to_string(),
    };
    match told.find("://") {
        Some(_) => "an address is not a URL".to_owned(),
        None => told.lines().next().unwrap_or_default().to_owned(),
    }
}

fn s3(bucket: &str, environment: &Environment) -> object_store::Result<Connected> {
    let (mut builder, mut options) = (AmazonS3Builder::new(), ClientOptions::new());
    for (key, value) in beginnings() {
        options = options.with_config(key, &value);
        builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
    }
    for (key, value) in environment.settings::<AmazonS3ConfigKey>(Provider::S3) {
        if let AmazonS3ConfigKey::Client(key) = key {
            options = options.with_config(key, value);
        }
        builder = builder.with_config(key, value);
    }
    let unsigned = builder.get_config_value(&AmazonS3ConfigKey::SkipSignature);
    let store = builder
        .with_bucket_name(bucket)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // We delete one by one; fewer servers know the request for many.
        .with_config(AmazonS3ConfigKey::DisableBulkDelete, "true")
        .with_retry(no_retries())
        .build()?;
    // Who signs nothing lists no uploads.
    let below = match unsigned.as_deref() {
        Some("true") => Below::Any,
        _ => Below::S3(Arc::new(S3Uploads::new(store.clone(), &options)?)),
    };
    Ok((Arc::new(store), below))
}

fn gcs(bucket: &str, environment: &Environment) -> object_store::Result<Connected> {
    let mut builder = GoogleCloudStorageBuilder::new();
    for (key, value) in beginnings() {
        builder = builder.with_config(GoogleConfigKey::Client(key), value);
    }
    for (key, value) in environment.settings::<GoogleConfigKey>(Provider::Gcs) {
        builder = builder.with_config(key, value);
    }
    let store = builder.with_bucket_name(bucket).with_retry(no_retries()).build()?;
    Ok((Arc::new(store), Below::Any))
}

fn azure(container: &str, environment: &Environment) -> object_store::Result<Connected> {
    let mut builder = MicrosoftAzureBuilder::new();
    for (key, value) in beginnings() {
        builder = builder.with_config(AzureConfigKey::Client(key), value);
    }
    for (key, value) in environment.settings::<AzureConfigKey>(Provider::Azure) {
        builder = builder.with_config(key, value);
    }
    if let Some(endpoint) = environment.0.get(IDENTITY_ENDPOINT) {
        builder = builder.with_msi_endpoint(endpoint);
    }
    let store = builder.with_container_name(container).with_retry(no_retries()).build()?;
    Ok((Arc::new(store), Below::Any))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Classify, ErrorKind};
    use crate::store::{Store, StoreUrl};

    fn bucket(url: &str) -> Bucket {
        let StoreUrl::Remote(bucket) = StoreUrl::parse(url).unwrap() else { panic!("{url}") };
        bucket
    }

    #[test]
    fn a_client_is_made_from_the_environment_alone() {
        let environment: Environment = [
            ("AWS_ACCESS_KEY_ID", "AK"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
            ("AWS_CONDITIONAL_PUT", "disabled"),
            ("AWS_PAGER", "less"),
            ("GOOGLE_SKIP_SIGNATURE", "true"),
            ("AZURE_STORAGE_ACCOUNT_NAME", "me"),
            ("AZURE_STORAGE_ACCOUNT_KEY", "aHVudGVyMg=="),
        ]
        .into_iter()
        .collect();
        for url in ["s3://logs/a/b", "gs://logs", "az://logs/a"] {
            let store = Store::open_in(url, &environment).unwrap();
            assert_eq!(store.to_string(), url);
        }
        let (client, _) = connect(&bucket("s3://logs"), &environment).unwrap();
        let debug = format!("{client:?}");
        assert!(debug.contains("max_retries: 0"), "{debug}");
        assert!(debug.contains("conditional_put: ETagMatch"), "{debug}");
        assert!(debug.contains("disable_bulk_delete: true"), "{debug}");
        assert!(debug.contains("timeout: Some(Parsed(240s))") || debug.contains("240s"), "{debug}");
    }

    #[test]
    fn settings_that_make_no_store_are_told_with_the_variables_to_look_at() {
        let key = ("AWS_ACCESS_KEY_ID", "AK");
        for (url, variables, words) in [
            ("s3://b", vec![key], ["Secret", "AWS_*"]),
            (
                "s3://b",
                vec![key, ("AWS_SECRET_ACCESS_KEY", "hunter2"), ("AWS_ALLOW_HTTP", "perhaps")],
                ["perhaps", "AWS_*"],
            ),
            ("az://c", vec![], ["ccount", "AZURE_*"]),
            (
                "az://c",
                vec![
                    ("AZURE_STORAGE_ACCOUNT_NAME", "me"),
                    ("AZURE_STORAGE_ENDPOINT", "ht tp://x?sig=hunter2"),
                ],
                ["not a URL", "AZURE_*"],
            ),
            (
                "gs://b",
                vec![("GOOGLE_SERVICE_ACCOUNT", "/nowhere.json")],
                ["/nowhere.json", "GOOGLE_*"],
            ),
            ("gs://b", vec![("GOOGLE_SERVICE_ACCOUNT_KEY", "{hunter2")], ["", "GOOGLE_*"]),
        ] {
            let environment: Environment = variables.into_iter().collect();
            let error = Store::open_in(url, &environment).unwrap_err();
            let line = error.to_string();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{line}");
            assert!(words.iter().all(|word| line.contains(word)), "{line}");
            assert!(line.contains(url) && !line.contains("hunter2"), "{line}");
            assert!(!line.contains('\n') && line.len() < 400, "{line}");
        }
    }

    #[test]
    fn an_environment_shows_names_and_no_values() {
        let environment: Environment = [("AWS_SECRET_ACCESS_KEY", "hunter2")].into_iter().collect();
        assert_eq!(format!("{environment:?}"), "{\"AWS_SECRET_ACCESS_KEY\"}");
    }
}
