//! The HTTP side: `/api/v1` as JSON, `/metrics`, `/healthz`.

use crate::brain::Event;
use crate::driver::{Handle, Stopped, View};
use crate::{metrics, probes, views};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::net::Ipv4Addr;
use weir_controller_core::ids::{JobId, NodeId};
use weir_controller_core::io::PinChange;

/// A change that an operator asks for: it runs under a lease and is judged like any other.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TrialRequest {
    job: String,
    pins: Vec<PinRequest>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PinRequest {
    node: String,
    dst: Ipv4Addr,
    port: String,
}

/// All routes.
pub fn router(handle: Handle) -> Router {
    Router::new()
        .route("/api/v1/status", get(|s| read(s, views::status)))
        .route("/api/v1/links", get(|s| read(s, views::links)))
        .route("/api/v1/incidents", get(|s| read(s, views::incidents)))
        .route("/api/v1/events", get(|s| read(s, views::events)))
        .route("/api/v1/probes", get(|s| read(s, probes::shown)))
        .route("/api/v1/leases", get(|s| read(s, views::leases)))
        .route("/api/v1/leases/{id}/end", post(end_lease))
        .route("/api/v1/freeze", post(|s| freeze(s, true)))
        .route("/api/v1/unfreeze", post(|s| freeze(s, false)))
        .route("/api/v1/trials", post(trial))
        .route("/metrics", get(scrape))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(handle)
}

async fn read<T: Serialize + Send + 'static>(
    State(handle): State<Handle>,
    view: fn(&View<'_>) -> T,
) -> Response {
    match handle.read(view).await {
        Ok(value) => Json(value).into_response(),
        Err(stopped) => unavailable(&stopped),
    }
}

async fn freeze(State(handle): State<Handle>, frozen: bool) -> Response {
    match handle.event(Event::Freeze { frozen }).await {
        Ok(()) => Json(json!({ "frozen": frozen })).into_response(),
        Err(stopped) => unavailable(&stopped),
    }
}

async fn end_lease(State(handle): State<Handle>, Path(lease): Path<u64>) -> Response {
    let live = handle
        .read(move |v| {
            let mut trials = v.brain.core.trials().iter();
            trials.any(|t| t.lease == lease && t.is_live())
        })
        .await;
    match live {
        Ok(true) => {}
        Ok(false) => {
            let text = format!("no lease {lease} is held or on trial: `weir leases` lists them");
            return (StatusCode::NOT_FOUND, Json(json!({ "error": text }))).into_response();
        }
        Err(stopped) => return unavailable(&stopped),
    }
    match handle.event(Event::EndLease { lease }).await {
        Ok(()) => Json(json!({ "lease": lease })).into_response(),
        Err(stopped) => unavailable(&stopped),
    }
}

async fn trial(State(handle): State<Handle>, Json(request): Json<TrialRequest>) -> Response {
    let pins: Vec<PinChange> = request
        .pins
        .iter()
        .map(|p| PinChange {
            node: NodeId::new(&p.node),
            dst: p.dst,
            port: p.port.as_str().into(),
        })
        .collect();
    match handle.trial(JobId::new(&request.job), pins).await {
        Ok(Ok(lease)) => Json(json!({ "lease": lease })).into_response(),
        Ok(Err(reason)) => {
            let text = format!("not started: {reason}");
            (StatusCode::CONFLICT, Json(json!({ "error": text }))).into_response()
        }
        Err(stopped) => unavailable(&stopped),
    }
}

async fn scrape(State(handle): State<Handle>) -> Response {
    match handle.read(metrics::render).await {
        Ok(Ok(text)) => ([("content-type", prometheus::TEXT_FORMAT)], text).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        Err(stopped) => unavailable(&stopped),
    }
}

fn unavailable(stopped: &Stopped) -> Response {
    (
        StatusCode::SERVICE_UNAVAILABLE,
        Json(json!({ "error": stopped.to_string() })),
    )
        .into_response()
}
