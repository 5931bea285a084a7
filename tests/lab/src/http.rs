//! HTTP requests made from inside a lab's namespace, where its servers listen.

use std::time::Duration;

use anyhow::{Context, Result};
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
    sys::in_netns(namespace, || {
        ureq::get(url)
            .config()
            .timeout_global(Some(TIMEOUT))
            .build()
            .call()
            .and_then(|mut answer| answer.body_mut().read_to_string())
            .with_context(|| format!("GET {url}"))
    })
}

/// `POST` of JSON, answered by JSON.
///
/// # Errors
/// As [`get`].
pub fn post(namespace: &str, url: &str, body: &Value) -> Result<Value> {
    let text = sys::in_netns(namespace, || {
        ureq::post(url)
            .config()
            .timeout_global(Some(TIMEOUT))
            .build()
            .send_json(body)
            .and_then(|mut answer| answer.body_mut().read_to_string())
            .with_context(|| format!("POST {url}"))
    })?;
    parse(&text)
}

fn parse(text: &str) -> Result<Value> {
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(text).with_context(|| format!("not JSON: {text:.200}"))
}
