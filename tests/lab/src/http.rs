//! HTTP requests made from inside a lab's namespace, where its servers listen.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::sys;

/// An answer from the same machine that takes longer than this is a fault of its own.
const TIMEOUT: Duration = Duration::from_secs(3);

/// `GET` of JSON; an empty answer is null.
///
/// # Errors
/// When the answer is not 2xx or no JSON.
pub fn get(namespace: &str, url: &str) -> Result<Value> {
    parse(&get_text(namespace, url)?)
}

/// `GET` of a text.
///
/// # Errors
/// When the answer is not 2xx.
pub fn get_text(namespace: &str, url: &str) -> Result<String> {
    sys::in_netns(namespace, || text_of("GET", url, agent().get(url).call()))
}

/// `POST` of JSON, answered by JSON.
///
/// # Errors
/// As [`get`].
pub fn post(namespace: &str, url: &str, body: &Value) -> Result<Value> {
    let text = sys::in_netns(namespace, || {
        text_of("POST", url, agent().post(url).send_json(body))
    })?;
    parse(&text)
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        .build()
        .into()
}

/// The body, which is the error's text if the status is none of success.
fn text_of(
    method: &str,
    url: &str,
    answer: std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<String> {
    let mut answer = answer.with_context(|| format!("{method} {url}"))?;
    let text = answer.body_mut().read_to_string();
    let text = text.with_context(|| format!("{method} {url}"))?;
    let status = answer.status();
    ensure!(status.is_success(), "{method} {url}: {status}: {text}");
    Ok(text)
}

fn parse(text: &str) -> Result<Value> {
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(text).with_context(|| format!("not JSON: {text:.200}"))
}
