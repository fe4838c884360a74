//! What shows the inside of the process to people: the status page, its data, and what can be
//! looked at and done there.

use std::net::IpAddr;
use std::sync::Arc;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderName, ORIGIN};
use actix_web::{HttpRequest, HttpResponse, ResponseError, web};
use futures_util::FutureExt;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tokio::sync::Semaphore;

use super::guard::{Guard, Pass};
use super::live::{Asker, Live};
use super::problem::Problem;
use super::state::Builder;
use super::{Served, dead, page, shown};
use crate::topology::{Http, Tracing};

/// Looks at dead letters at once: each holds all of a stream's.
const DEAD_AT_ONCE: usize = 2;
/// What a browser says of where a request comes from.
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What the handlers know, beside what all of them do.
pub(super) struct Inside {
    pub served: web::Data<Served>,
    pub dead: Semaphore,
    live: Arc<Live>,
}

impl Inside {
    /// Starts what makes the state.
    pub fn start(served: &web::Data<Served>) -> Self {
        let edition = served.editions.borrow().clone();
        let jaeger = |tracing: Option<&Tracing>| jaeger(std::env::var("JAEGER_URL").ok(), tracing);
        let builder = Builder::new(served.board.clone(), edition, Box::new(jaeger));
        let queries = served.clone();
        let asker = Asker {
            supervisor: served.supervisor.clone(),
            queries: Box::new(move || {
                let served = queries.clone();
                async move { served.now().queries.troubles().await }.boxed_local()
            }),
        };
        let live = Live::start(builder, served.editions.clone(), asker);
        Self { served: served.clone(), dead: Semaphore::new(DEAD_AT_ONCE), live }
    }

    fn guard(&self) -> Arc<Guard> {
        self.served.now().intake.guard().clone()
    }

    /// Names under which this machine may be asked without a token.
    fn names(&self) -> Vec<String> {
        let edition = self.served.editions.borrow();
        edition.topology.http.as_ref().map(names).unwrap_or_default()
    }

    /// Ends what viewers are sent.
    pub fn stop(&self) {
        self.live.stop.cancel();
    }

    /// Lets in who may see events, or do something: who has the token and is no page of somebody
    /// else's. Without a token, a name that somebody else may have given this machine will not do
    /// (DNS rebinding).
    pub fn admit(&self, request: &HttpRequest) -> Result<Pass, Problem> {
        let guard = self.guard();
        let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        let host = header(HOST).or_else(|| request.uri().authority().map(|it| it.as_str()));
        let host = host.unwrap_or_default();
        let origin = header(ORIGIN);
        let own = origin.is_none_or(|origin| {
            origin.split_once("://").is_some_and(|(_, from)| from.eq_ignore_ascii_case(host))
        });
        let near = header(SITE).is_none_or(|site| matches!(site, "same-origin" | "none"));
        if !own || !near {
            return Err(Problem::forbidden("another site's page may not ask this"));
        }
        if !guard.asks() && !is_own_name(host, &self.names()) {
            return Err(Problem::forbidden(
                "without a `token` in [http], ask by an IP address, as localhost, or by the \
                 machine's own name",
            ));
        }
        if !guard.knows(request) {
            return Err(Problem::stranger());
        }
        guard.enter().ok_or_else(Problem::busy)
    }

    /// The same for what changes something: in JSON, which a page of somebody else's cannot send
    /// unasked.
    pub fn admit_action(&self, request: &HttpRequest) -> Result<Pass, Problem> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            return Err(Problem::unread("the Content-Type is not application/json"));
        }
        self.admit(request)
    }
}

/// What is served.
pub(super) fn configure(config: &mut web::ServiceConfig) {
    config
        .service(shown("/", page::index))
        .service(shown("/api/page/{file}", page::file))
        .service(shown("/api/state", state))
        .service(shown("/api/live", live))
        .service(shown("/api/events", events))
        .service(shown("/api/streams/{stream}/dead", dead::list))
        .service(posted("/api/streams/{stream}/dead/replay").route(web::post().to(dead::replay)))
        .service(posted("/api/streams/{stream}/dead/drop").route(web::post().to(dead::forget)));
}

fn posted(path: &str) -> actix_web::Resource {
    let other = || std::future::ready(Problem::only_post().error_response());
    web::resource(path).default_service(web::to(other))
}

async fn state(inside: web::Data<Inside>) -> HttpResponse {
    match inside.live.state().await {
        Some(frame) => HttpResponse::Ok()
            .content_type("application/json")
            .insert_header((CACHE_CONTROL, "no-store"))
            .body(frame.state.clone()),
        None => super::stopping(),
    }
}

async fn live(inside: web::Data<Inside>) -> HttpResponse {
    match inside.live.events() {
        Some(events) => HttpResponse::Ok()
            .content_type("text/event-stream")
            .insert_header((CACHE_CONTROL, "no-store"))
            .insert_header(("X-Accel-Buffering", "no"))
            .streaming(events),
        None => Problem::away("too many look at the page already").error_response(),
    }
}

#[derive(Deserialize)]
struct Look {
    node: String,
}

/// The events that passed a node of late.
async fn events(inside: web::Data<Inside>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let _pass = inside.admit(&request)?;
    let look = web::Query::<Look>::from_query(request.query_string());
    let look = look.map_err(|_| Problem::bad("`?node=stream.NAME` is missing"))?;
    let events = inside.served.board.taps.look(&look.node);
    Ok(HttpResponse::Ok()
        .insert_header((CACHE_CONTROL, "no-store"))
        .json(json!({ "node": look.node, "events": events })))
}

/// What of it is for programs, as `/openapi.json` has it.
pub(super) fn described() -> Vec<(String, Json)> {
    let shown = |about: &str| json!({ "description": about });
    let problem = |about: &str| {
        json!({ "description": about, "content": { "application/json": {
            "schema": { "$ref": "#/components/schemas/Error" },
        } } })
    };
    let stream = json!({
        "name": "stream", "in": "path", "required": true, "schema": { "type": "string" },
    });
    let limit = json!({
        "name": "limit", "in": "query", "description": "Letters that are listed.",
        "schema": { "type": "integer", "minimum": 0, "maximum": dead::SHOWN_MAX },
    });
    let node = json!({
        "name": "node", "in": "query", "required": true,
        "description": "`source.NAME`, `stream.NAME`, `group.NAME` or `sink.NAME`.",
        "schema": { "type": "string" },
    });
    let guarded = |id: &str, summary: &str, parameters: Json| {
        json!({
            "operationId": id, "summary": summary, "parameters": parameters,
            "responses": {
                "200": shown("Here it is."),
                "400": problem("It is not asked for as described here."),
                "403": problem("It is not for pages of other sites."),
                "404": problem("No stream has this name."),
                "429": problem("Too many requests are under way."),
                "503": problem("The stream cannot be reached; Retry-After says when to ask again."),
            },
        })
    };
    let act = |what: &str, summary: &str| {
        let mut act = guarded(&format!("{what}_dead"), summary, json!([stream]));
        act["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": {
            "oneOf": [
                { "type": "object", "required": ["ids"], "additionalProperties": false,
                  "properties": { "ids": { "type": "array", "minItems": 1,
                      "items": { "type": "string", "format": "uuid" } } } },
                { "type": "object", "required": ["all"], "additionalProperties": false,
                  "properties": { "all": { "const": true } } },
            ],
        } } } });
        act["responses"]["408"] = problem("The body took too long.");
        act["responses"]["413"] = problem("The body is too large.");
        act["responses"]["415"] = problem("The Content-Type is not application/json.");
        json!({ "post": act })
    };
    let open = |summary: &str, media: &str| {
        json!({ "get": { "summary": summary, "responses": {
            "200": { "description": "Here it is.", "content": { media: {} } },
            "503": shown("The process is stopping, or too many look."),
        } } })
    };
    let dead = "/api/streams/{stream}/dead";
    let list = guarded("list_dead", "The oldest dead letters of a stream.", json!([stream, limit]));
    let events = "Events that passed a component while somebody looked: a sample.";
    let events = guarded("events", events, json!([node]));
    let state = "Everything that the status page shows: components, how events get from one to \
                 the next, how each of them is. Times are microseconds since 1970.";
    let live = "The same as server-sent events: `state` at first and when the topology changes, \
                `tick` with what changes all the time, every second and when a component fails.";
    let edit = "Applies the topology file as it is now. Answers its generation, and what changed.";
    let mut edit = guarded("reload", edit, json!([]));
    edit["responses"]["422"] = problem("The file is wrong: `faults` has each, with its place.");
    edit["responses"]["503"] = problem("The process is stopping, or runs --until-idle.");
    [
        ("/api/reload".to_owned(), json!({ "post": edit })),
        ("/api/state".to_owned(), open(state, "application/json")),
        ("/api/live".to_owned(), open(live, "text/event-stream")),
        ("/api/events".to_owned(), json!({ "get": events })),
        (dead.to_owned(), json!({ "get": list })),
        (format!("{dead}/replay"), act("replay", "Puts dead letters back, each for its group.")),
        (format!("{dead}/drop"), act("drop", "Forgets dead letters.")),
    ]
    .into()
}

/// Where Jaeger shows the traces: what `JAEGER_URL` says, else beside the collector at its usual
/// port. A name that only means something among containers stands for the host of the page.
fn jaeger(url: Option<String>, tracing: Option<&Tracing>) -> Option<String> {
    let web = |url: &String| url.starts_with("http://") || url.starts_with("https://");
    if let Some(url) = url.filter(web) {
        return Some(url.trim_end_matches('/').to_owned());
    }
    let (_, rest) = tracing?.otlp.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let host = host_of(authority.rsplit('@').next()?);
    let near = host.parse::<IpAddr>().map_or(!host.contains('.'), |ip| ip.is_loopback());
    let host = match (near, host.contains(':')) {
        (true, _) => "{host}".to_owned(),
        (false, true) => format!("[{host}]"),
        (false, false) => host.to_owned(),
    };
    Some(format!("http://{host}:16686"))
}

/// `host` of `host:port` or `[::1]:port`.
fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((ip, _)) => ip,
        None => authority.split(':').next().unwrap_or_default(),
    }
}

fn names(http: &Http) -> Vec<String> {
    let listen = [Some(&http.listen), http.admin.as_ref()].into_iter().flatten();
    let mut names: Vec<String> = listen.map(|it| host_of(it).to_ascii_lowercase()).collect();
    names.push(gethostname::gethostname().to_string_lossy().to_ascii_lowercase());
    names
}

/// Whether a `Host` cannot be a name that somebody else gave this machine.
fn is_own_name(host: &str, names: &[String]) -> bool {
    let name = host_of(host).trim_end_matches('.').to_ascii_lowercase();
    name.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || names.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Sample;

    #[test]
    fn traces_are_shown_where_the_environment_says_or_beside_the_collector() {
        let tracing = |otlp: &str| Tracing {
            otlp: otlp.to_owned(),
            service: "aqueduct".to_owned(),
            sample: Sample::Ratio(1.0),
        };
        let shown = |url: Option<&str>, otlp| jaeger(url.map(str::to_owned), Some(&tracing(otlp)));
        let here = Some("http://{host}:16686".to_owned());
        assert_eq!(shown(None, "http://localhost:4317"), here);
        assert_eq!(shown(None, "http://jaeger:4317"), here);
        assert_eq!(shown(None, "http://[::1]:4317"), here);
        assert_eq!(shown(None, "https://u:p@a.b:4317/x").unwrap(), "http://a.b:16686");
        assert_eq!(shown(Some("https://j/ui/"), "http://a.b:1").unwrap(), "https://j/ui");
        assert_eq!(shown(Some("javascript:x"), "http://a.b:1").unwrap(), "http://a.b:16686");
        assert_eq!(jaeger(None, None), None);
    }

    #[test]
    fn only_names_that_are_this_machine_s_will_do_without_a_token() {
        let names = ["box".to_owned()];
        for own in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "Box:80", "a.localhost"] {
            assert!(is_own_name(own, &names), "{own}");
        }
        for other in ["evil.example:8080", "", "localhost.evil.example", "127.0.0.1.evil.example"] {
            assert!(!is_own_name(other, &names), "{other}");
        }
    }
}
