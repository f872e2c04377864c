//! The files that pages need: a style sheet, scripts, an icon.

use axum::{
    extract::Path,
    response::{IntoResponse, Response},
};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use sha2::{Digest as _, Sha256};

use crate::problem::Problem;

const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

/// Every file: its name, its media type, and what is in it.
const FILES: &[(&str, &str, &str)] = &[
    ("style.css", CSS, include_str!("../assets/style.css")),
    (
        "icon.svg",
        "image/svg+xml",
        include_str!("../assets/icon.svg"),
    ),
    ("times.js", JS, include_str!("../assets/times.js")),
    ("copy.js", JS, include_str!("../assets/copy.js")),
    ("builder.js", JS, include_str!("../assets/builder.js")),
    ("zone.js", JS, include_str!("../assets/zone.js")),
    ("live.js", JS, include_str!("../assets/live.js")),
];

/// Path of a file, with its digest: a new build has new paths, so that browsers may keep them.
pub(crate) fn path(name: &str) -> String {
    let file = FILES.iter().find(|(known, ..)| *known == name);
    let (.., content) = file.expect("pages name files that are in the list");
    let digest = Sha256::digest(content);
    let digest: String = digest[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("/assets/{name}?{digest}")
}

/// A file.
pub(crate) async fn serve(Path(name): Path<String>) -> Response {
    let Some((_, kind, content)) = FILES.iter().find(|(known, ..)| *known == name) else {
        return Problem::not_found().into_response();
    };
    let headers = [
        (CONTENT_TYPE, *kind),
        (CACHE_CONTROL, "public, max-age=31536000, immutable"),
    ];
    (headers, *content).into_response()
}
