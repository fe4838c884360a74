//! The status page: a few files, kept in the program.

use std::collections::HashMap;
use std::io::Write;
use std::sync::LazyLock;

use actix_web::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, ETAG, IF_NONE_MATCH, VARY,
};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

/// What the page may do: nothing but what it brings along, and to ask where it came from.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

macro_rules! files {
    ($($name:literal: $kind:literal),* $(,)?) => {
        &[$(($name, $kind, include_bytes!(concat!("page/", $name)))),*]
    };
}

/// Name, media type and content.
static FILES: &[(&str, &str, &[u8])] = files! {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "panel.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "theme.js": "text/javascript; charset=utf-8",
    "graph.js": "text/javascript; charset=utf-8",
    "edges.js": "text/javascript; charset=utf-8",
    "panel.js": "text/javascript; charset=utf-8",
    "letters.js": "text/javascript; charset=utf-8",
    "ask.js": "text/javascript; charset=utf-8",
    "format.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
};

/// A file, as it is sent.
struct File {
    kind: &'static str,
    etag: String,
    plain: Bytes,
    gzip: Bytes,
}

static SERVED: LazyLock<HashMap<&'static str, File>> = LazyLock::new(|| {
    let file = |(name, kind, content): &(&'static str, &'static str, &'static [u8])| {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        // Writing to memory cannot fail; what is not compressed is sent as it is.
        let gzip = gzip.write_all(content).and_then(|()| gzip.finish()).unwrap_or_default();
        let etag = format!("W/\"{:016x}\"", crate::event::hash(content));
        let plain = Bytes::from_static(content);
        (*name, File { kind, etag, plain, gzip: gzip.into() })
    };
    FILES.iter().map(file).collect()
});

/// `/`
pub(super) async fn index(request: HttpRequest) -> HttpResponse {
    serve("index.html", &request)
}

/// `/api/page/FILE`
pub(super) async fn file(request: HttpRequest, name: web::Path<String>) -> HttpResponse {
    serve(&name, &request)
}

fn serve(name: &str, request: &HttpRequest) -> HttpResponse {
    let Some(file) = SERVED.get(name) else { return HttpResponse::NotFound().finish() };
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let known = header(IF_NONE_MATCH).is_some_and(|etags| etags.contains(&file.etag));
    let mut answer = match known {
        true => HttpResponse::NotModified(),
        false => HttpResponse::Ok(),
    };
    answer
        .insert_header((ETAG, file.etag.as_str()))
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((VARY, "Accept-Encoding"))
        .insert_header(("Content-Security-Policy", POLICY))
        .insert_header(("X-Content-Type-Options", "nosniff"))
        .insert_header(("Referrer-Policy", "no-referrer"));
    if known {
        return answer.finish();
    }
    answer.content_type(file.kind);
    let zipped = header(ACCEPT_ENCODING).is_some_and(|encodings| encodings.contains("gzip"));
    if zipped && !file.gzip.is_empty() {
        return answer.insert_header((CONTENT_ENCODING, "gzip")).body(file.gzip.clone());
    }
    answer.body(file.plain.clone())
}
