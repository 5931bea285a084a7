//! The HTTP side: `/api/v1` as JSON, `/metrics`, `/healthz`.

use crate::brain::Event;
use crate::driver::{Handle, Stopped, View};
use crate::ingest::is_name;
use crate::{metrics, probes, views};
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{CONTENT_TYPE, HOST, ORIGIN};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
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

/// Which events are wanted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsWanted {
    node: Option<String>,
}

/// All routes.
pub fn router(handle: Handle) -> Router {
    Router::new()
        .route("/api/v1/status", get(|s| read(s, views::status)))
        .route("/api/v1/links", get(|s| read(s, views::links)))
        .route("/api/v1/incidents", get(|s| read(s, views::incidents)))
        .route("/api/v1/events", get(events))
        .route("/api/v1/probes", get(|s| read(s, probes::shown)))
        .route("/api/v1/leases", get(|s| read(s, views::leases)))
        .route("/api/v1/leases/{id}/end", post(end_lease))
        .route("/api/v1/freeze", post(|s| freeze(s, true)))
        .route("/api/v1/unfreeze", post(|s| freeze(s, false)))
        .route("/api/v1/trials", post(trial))
        .route("/metrics", get(scrape))
        .route("/healthz", get(|| async { "ok\n" }))
        .fallback(|uri: Uri| async move {
            error(
                StatusCode::NOT_FOUND,
                &format!("there is no {}", uri.path()),
            )
        })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            let text = format!("{} does not take {method}", uri.path());
            error(StatusCode::METHOD_NOT_ALLOWED, &text)
        })
        .layer(middleware::from_fn(no_browser))
        .with_state(handle)
}

/// A page that an operator looks at must not steer the fabric: a browser sends JSON to another
/// origin only if that allows it, and tells its own origin.
async fn no_browser(request: Request, next: Next) -> Response {
    match refusal(request.method(), request.headers()) {
        Some((status, text)) => error(status, text),
        None => next.run(request).await,
    }
}

fn refusal(method: &Method, headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
    if method != Method::POST {
        return None;
    }
    let header = |name| headers.get(name).and_then(|v| v.to_str().ok());
    if !header(CONTENT_TYPE).is_some_and(|t| t.starts_with("application/json")) {
        let text = "POST needs the header content-type: application/json";
        return Some((StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
    }
    let host = header(HOST).unwrap_or_default();
    let foreign = |origin: &str| origin.split_once("://").is_none_or(|(_, at)| at != host);
    let text = "a page of another origin may not do this";
    header(ORIGIN)
        .is_some_and(foreign)
        .then_some((StatusCode::FORBIDDEN, text))
}

fn error(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "error": text }))).into_response()
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

async fn events(
    State(handle): State<Handle>,
    wanted: Result<Query<EventsWanted>, QueryRejection>,
) -> Response {
    let node = match wanted {
        Ok(Query(wanted)) => wanted.node,
        Err(rejection) => return error(rejection.status(), &rejection.body_text()),
    };
    match handle
        .read(move |view| views::events(view, node.as_deref()))
        .await
    {
        Ok(events) => Json(events).into_response(),
        Err(stopped) => unavailable(&stopped),
    }
}

async fn freeze(State(handle): State<Handle>, frozen: bool) -> Response {
    match handle.freeze(frozen).await {
        Ok(Ok(())) => Json(json!({ "frozen": frozen })).into_response(),
        Ok(Err(text)) => error(StatusCode::INTERNAL_SERVER_ERROR, &text),
        Err(stopped) => unavailable(&stopped),
    }
}

async fn end_lease(
    State(handle): State<Handle>,
    lease: Result<Path<u64>, PathRejection>,
) -> Response {
    let lease = match lease {
        Ok(Path(lease)) => lease,
        Err(rejection) => return error(rejection.status(), &rejection.body_text()),
    };
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
            return error(StatusCode::NOT_FOUND, &text);
        }
        Err(stopped) => return unavailable(&stopped),
    }
    match handle.event(Event::EndLease { lease }).await {
        Ok(()) => Json(json!({ "lease": lease })).into_response(),
        Err(stopped) => unavailable(&stopped),
    }
}

async fn trial(
    State(handle): State<Handle>,
    request: Result<Json<TrialRequest>, JsonRejection>,
) -> Response {
    let request = match request {
        Ok(Json(request)) => request,
        Err(rejection) => return error(rejection.status(), &rejection.body_text()),
    };
    let pins = request.pins.iter().flat_map(|p| [&p.node, &p.port]);
    if let Some(text) = pins
        .chain([&request.job])
        .find(|n| n.is_empty() || !is_name(n))
    {
        let start: String = text.chars().take(32).collect();
        let text = format!("{start:?} is no name of a job, node or port");
        return error(StatusCode::UNPROCESSABLE_ENTITY, &text);
    }
    let pins: Vec<PinChange> = request
        .pins
        .iter()
        .map(|p| PinChange {
            node: NodeId::new(&p.node),
            dst: p.dst,
            port: p.port.as_str().into(),
        })
        .collect();
    match handle.trial(JobId::shown(&request.job), pins).await {
        Ok(Ok(lease)) => Json(json!({ "lease": lease })).into_response(),
        Ok(Err(reason)) => {
            let text = format!("not started: {reason}");
            error(StatusCode::CONFLICT, &text)
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
    error(StatusCode::SERVICE_UNAVAILABLE, &stopped.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(headers: &[(&str, &str)]) -> Option<StatusCode> {
        let mut map = HeaderMap::new();
        for (name, value) in [("host", "weir:9743")].iter().chain(headers) {
            let name: axum::http::HeaderName = name.parse().unwrap();
            map.insert(name, value.parse().unwrap());
        }
        assert_eq!(refusal(&Method::GET, &map), None);
        refusal(&Method::POST, &map).map(|(status, _)| status)
    }

    #[test]
    fn a_page_in_a_browser_cannot_steer_the_fabric() {
        let json = ("content-type", "application/json");
        assert_eq!(refused(&[json]), None);
        assert_eq!(refused(&[json, ("origin", "http://weir:9743")]), None);
        let foreign = refused(&[json, ("origin", "http://evil")]);
        assert_eq!(foreign, Some(StatusCode::FORBIDDEN));
        let simple = refused(&[("content-type", "text/plain")]);
        assert_eq!(simple, Some(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        assert_eq!(refused(&[]), Some(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
}
