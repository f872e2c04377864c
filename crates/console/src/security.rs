//! What every answer tells the browser, and whether a form comes from our own pages.

use axum::{extract::Request, middleware::Next, response::Response};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CACHE_CONTROL, HOST, ORIGIN},
};

/// Nothing inline, nothing from elsewhere, in nobody's frame.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; \
    base-uri 'none'";

const HEADERS: [(&str, &str); 6] = [
    ("content-security-policy", CONTENT_SECURITY_POLICY),
    ("x-content-type-options", "nosniff"),
    // Not `no-referrer`: browsers would then send `Origin: null` with our own forms.
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-frame-options", "DENY"),
];

/// Puts the headers on every answer. Pages are not to be kept, also not by the back button of the
/// next person at the same machine; files say themselves how long they last.
pub(crate) async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    headers
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Whether the browser says that one of our own pages made the request.
///
/// `Sec-Fetch-Site` cannot be forged by a page and is sent wherever the connection is safe; else the
/// host in `Origin` must be the one asked. A request with neither comes from no browser of today,
/// and is refused.
pub(crate) fn is_same_origin(headers: &HeaderMap) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return site == "same-origin";
    }
    let (Some(origin), Some(host)) = (headers.get(ORIGIN), headers.get(HOST)) else {
        return false;
    };
    let origin_host = origin.to_str().ok().and_then(|o| o.split_once("://"));
    origin_host.is_some_and(|(_, origin_host)| origin_host.as_bytes() == host.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(headers: &[(&'static str, &'static str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        is_same_origin(&headers.collect())
    }

    #[test]
    fn only_our_own_pages_may_send_forms() {
        let host = ("host", "muster.example:7412");
        assert!(asks(&[host, ("sec-fetch-site", "same-origin")]));
        for site in ["cross-site", "same-site", "none", ""] {
            assert!(!asks(&[host, ("sec-fetch-site", site)]), "{site}");
        }
        assert!(asks(&[host, ("origin", "https://muster.example:7412")]));
        for origin in [
            "https://muster.example",
            "https://evil.example",
            "https://muster.example:7412.evil.example",
            "null",
        ] {
            assert!(!asks(&[host, ("origin", origin)]), "{origin}");
        }
        assert!(!asks(&[host]));
        // The stronger header decides.
        let own = ("origin", "https://muster.example:7412");
        assert!(!asks(&[host, own, ("sec-fetch-site", "cross-site")]));
    }
}
