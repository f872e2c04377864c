use muster_domain::credential::{Kind, Secret};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::rest::{RestSettings, serve};

#[test]
fn a_cohort_is_named_after_its_file() {
    for (file, stem) in [
        ("/data/spring sale.csv.gz", "spring sale"),
        ("spring sale.CSV", "spring sale"),
        ("été.csv", "été"),
        ("v1.2 list", "v1.2 list"),
        ("spring.sale.csv", "spring.sale"),
        (".csv", ".csv"),
        ("é", "é"),
        ("", ""),
    ] {
        assert_eq!(file_stem(Path::new(file)), stem, "{file}");
    }
}

/// The real endpoint, with no servers behind it.
async fn endpoint() -> (String, CancellationToken) {
    let connection = Connection::new("http://127.0.0.1:9", None).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    tokio::spawn(serve(
        listener,
        RestSettings::new(connection),
        shutdown.clone(),
    ));
    (url, shutdown)
}

fn target(base_url: &str, client_secret: &str) -> Target {
    Target::Rest(RestTarget {
        base_url: base_url.to_owned(),
        partner: "tinyclues".to_owned(),
        partner_api_key: Secret::generate(Kind::PartnerApiKey)
            .unwrap()
            .expose()
            .to_owned(),
        client_secret: client_secret.to_owned(),
    })
}

/// Nothing listens at the target: a file that is refused never gets that far.
#[tokio::test]
async fn a_replacement_that_names_nobody_is_refused_before_anything_is_sent() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("spring.csv");
    let target = Target::Grpc {
        connection: Connection::new("http://127.0.0.1:9", None).unwrap(),
        workspace: "shop".to_owned(),
        partner: "tinyclues".to_owned(),
    };
    for (rows, told) in [
        ("", "names nobody,"),
        ("a,b\n\"\"\n", "in its 2 rows (line 2: 2 fields"),
    ] {
        std::fs::write(&path, format!("external_id\n{rows}")).unwrap();
        let refused = export(&path, &target, &options(Mode::Replace), &mut |_| {}).await;
        let refused = refused.unwrap_err();
        assert!(matches!(refused, ExportError::Nobody(_)));
        assert!(refused.to_string().contains(told), "{refused}");
        for allow_empty in [true, false] {
            let mode = if allow_empty {
                Mode::Replace
            } else {
                Mode::Delta
            };
            let options = Options {
                allow_empty,
                ..options(mode)
            };
            let sent = export(&path, &target, &options, &mut |_| {}).await;
            assert!(matches!(sent, Err(ExportError::Upload(_))), "{sent:?}");
        }
    }
}

fn options(mode: Mode) -> Options {
    let mut options = Options::new(mode);
    options.retry.failures = 3;
    options.retry.first_wait = Duration::from_millis(1);
    options
}

fn audience() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("spring sale.csv");
    std::fs::write(&path, "external_id\nu1\n").unwrap();
    (dir, path)
}

#[tokio::test]
async fn a_replacement_over_rest_is_refused_before_anything_is_sent() {
    let (_dir, path) = audience();
    let target = target("http://127.0.0.1:9", "x");
    let error = export(&path, &target, &options(Mode::Replace), &mut |_| {}).await;
    assert!(matches!(error, Err(ExportError::ReplaceOverRest)));
}

#[tokio::test]
async fn rest_retries_what_may_pass_and_stops_at_the_rest() {
    let (_dir, path) = audience();
    let (url, shutdown) = endpoint().await;
    let good = Secret::generate(Kind::DataImportKey).unwrap();
    // The endpoint asks for 2 s; shorter tests would need a server that asks for less.
    let mut waits = Vec::new();
    let mut note = |event| {
        if let Event::Retrying { wait, .. } = event {
            waits.push(wait);
        }
    };
    let mut twice = options(Mode::Delta);
    twice.retry.failures = 2;
    let error = export(&path, &target(&url, good.expose()), &twice, &mut note).await;
    let Err(ExportError::Rest(error)) = error else {
        panic!("{error:?}");
    };
    assert!(
        matches!(error.what, RestFailure::GaveUp { failures: 2, .. }),
        "{error}"
    );
    assert_eq!(error.sent, 0);
    assert_eq!(waits, [Duration::from_secs(2)]);

    let error = export(&path, &target(&url, "hunter2"), &twice, &mut |_| {}).await;
    let Err(ExportError::Rest(error)) = error else {
        panic!("{error:?}");
    };
    let text = error.to_string();
    assert!(
        text.contains("401") && text.contains("Invalid client secret"),
        "{text}"
    );
    shutdown.cancel();
}

#[tokio::test]
async fn grpc_gives_up_in_the_end() {
    let (_dir, path) = audience();
    let target = Target::Grpc {
        connection: Connection::new("http://127.0.0.1:9", None).unwrap(),
        workspace: "shop".to_owned(),
        partner: "tinyclues".to_owned(),
    };
    let error = export(&path, &target, &options(Mode::Replace), &mut |_| {}).await;
    assert!(matches!(
        error,
        Err(ExportError::Upload(UploadError::GaveUp { failures: 3, .. }))
    ));
}

#[tokio::test]
async fn a_name_that_is_too_long_is_told_before_anything_is_read() {
    let mut options = options(Mode::Delta);
    options.name = Some("x".repeat(256));
    let target = target("http://127.0.0.1:9", "x");
    let error = export(Path::new("/nonexistent"), &target, &options, &mut |_| {}).await;
    let text = error.unwrap_err().to_string();
    assert!(text.contains("255 characters"), "{text}");
}
