//! Everything that is not about a block: ping, health, topology, status, metrics.
//!
//! Called by `handler`; answers without asking a shard wherever it can, so that a probe measures the network and the
//! listener's core, not a queue.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};

use super::{Answer, Handler, Stage};
use crate::problem::Problem;
use crate::proxy::blocks::Blocks;
use crate::proxy::body::ResponseBody;
use crate::proxy::openmetrics;
use crate::proxy::request::Route;
use crate::proxy::respond::{Failure, response};
use crate::proxy::status::Status;

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

impl<B: Blocks> Handler<B> {
    /// GET or HEAD of anything but a block.
    pub(super) async fn node(&self, route: Route<'_>) -> Answer<B> {
        match route {
            Route::Ping => Ok(response(StatusCode::NO_CONTENT, ResponseBody::Empty)),
            Route::Healthz => Ok(self.text(TEXT, Bytes::from_static(b"alive\n"))),
            Route::Readyz => match self.readiness.stage() {
                Stage::Ready => Ok(self.text(TEXT, Bytes::from_static(b"ready\n"))),
                Stage::Starting => Err(Failure::new(Problem::NotReady, "the node is starting")),
                Stage::Draining => Err(Failure::new(Problem::NotReady, "the node is stopping")),
            },
            Route::Topology => Ok(self.text(JSON, self.topology.clone())),
            Route::Status => {
                let status = Status::gather(&self.blocks, &self.facts, self.readiness.stage()).await;
                Ok(self.text(JSON, status.to_json()))
            }
            Route::Metrics => {
                let status = Status::gather(&self.blocks, &self.facts, self.readiness.stage()).await;
                Ok(self.text(openmetrics::CONTENT_TYPE, openmetrics::render(&status)))
            }
            Route::Block { .. } | Route::Order { .. } | Route::Unknown => {
                Err(Failure::new(Problem::Internal, "a route was taken for another"))
            }
        }
    }

    fn text(&self, content_type: &'static str, body: Bytes) -> Response<ResponseBody<B>> {
        let mut answer = response(StatusCode::OK, ResponseBody::bytes(body, &self.metrics));
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer
    }
}
