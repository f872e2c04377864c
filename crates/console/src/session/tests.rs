use super::*;

fn sessions() -> Sessions {
    Sessions::new(Duration::from_secs(60), Duration::from_secs(150))
}

fn nowhere() -> Connection {
    Connection::new("http://127.0.0.1:9", None).unwrap()
}

/// What the browser sends back after it got a cookie.
fn kept(cookie: &HeaderValue) -> HeaderMap {
    let pair = cookie.to_str().unwrap().split(';').next().unwrap();
    HeaderMap::from_iter([(COOKIE, pair.parse().unwrap())])
}

fn open(sessions: &Sessions) -> HeaderMap {
    kept(&sessions.open(nowhere(), String::new()))
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_when_nobody_uses_it_and_at_the_latest_when_its_time_is_over() {
    let sessions = sessions();
    let headers = open(&sessions);
    for _ in 0..3 {
        tokio::time::advance(Duration::from_secs(40)).await;
        let session = sessions.find(&headers).unwrap();
        lock(&session.desk).seen = Instant::now();
    }
    // Used all the time, but for too long.
    tokio::time::advance(Duration::from_secs(31)).await;
    assert!(sessions.find(&headers).is_none());
    let unused = open(&sessions);
    tokio::time::advance(Duration::from_secs(61)).await;
    assert!(sessions.find(&unused).is_none());
}

#[tokio::test]
async fn every_session_has_an_id_and_a_signature_of_its_own_and_ends_on_the_server() {
    let sessions = sessions();
    let (one, other) = (open(&sessions), open(&sessions));
    assert_ne!(one, other);
    let first = sessions.find(&one).unwrap();
    let second = sessions.find(&other).unwrap();
    assert!(first.owns(&first.csrf) && !first.owns(&second.csrf) && !first.owns(""));
    sessions.end(&first);
    assert!(sessions.find(&one).is_none());
    assert!(sessions.find(&other).is_some());
    // An id that somebody made up opens nothing.
    let made_up = HeaderMap::from_iter([(COOKIE, "__Host-muster=abc".parse().unwrap())]);
    assert!(sessions.find(&made_up).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_new_secret_is_shown_once_and_only_on_its_own_page() {
    let sessions = sessions();
    let session = sessions.find(&open(&sessions)).unwrap();
    session.keep_secret("key", "mst_dik_x".to_owned());
    assert_eq!(session.take_secret("another"), None);
    assert_eq!(session.take_secret("key").as_deref(), Some("mst_dik_x"));
    assert_eq!(session.take_secret("key"), None);
    session.keep_secret("key", "mst_dik_y".to_owned());
    tokio::time::advance(SECRET_PATIENCE + Duration::from_secs(1)).await;
    assert_eq!(session.take_secret("key"), None);
}

#[test]
fn a_cookie_is_found_among_others_and_only_under_its_whole_name() {
    let headers = |text: &str| HeaderMap::from_iter([(COOKIE, text.parse().unwrap())]);
    assert_eq!(cookie(&headers("a=b; __Host-muster=x; c=d")), Some("x"));
    assert_eq!(cookie(&headers("muster=x; __Host-musters=y")), None);
}

#[test]
fn a_workspace_stands_behind_w() {
    assert_eq!(workspace("/w/shop/cohorts").as_deref(), Some("shop"));
    assert_eq!(workspace("/w/shop").as_deref(), Some("shop"));
    for path in ["/", "/w/", "/w/Sh%2Fop", "/sign-in"] {
        assert_eq!(workspace(path), None, "{path}");
    }
}
