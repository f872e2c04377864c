//! Secrets are used rightly, wrongly and where they do not belong, and then looked for everywhere.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use muster_launcher::client_program;
use muster_proto::{
    ingest::v1::{self as ingest, ingest_service_client::IngestServiceClient},
    keys::v1::{self as keys, key_service_client::KeyServiceClient},
    segments::v1::{self as segments, segment_service_client::SegmentServiceClient},
};
use tonic::{Request, Status, transport::Channel};

use muster_testbed::process::PATIENCE;

use crate::harness::{
    Muster, PARTNER, Server, Up, directory, file, run, run_within, text, up_command,
};

/// All there is to be found of a secret, in any form that it might be kept in.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let random = secret.splitn(3, '_').nth(2).unwrap();
    let mut forms: Vec<Vec<u8>> = Vec::new();
    for text in [secret, random] {
        forms.push(text.into());
        let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        forms.push(hex.into());
        // As part of something longer it may begin at each of three places.
        for before in ["", "-", "--"] {
            let encoded = BASE64_STANDARD.encode(format!("{before}{text}"));
            let (first, last) = (if before.is_empty() { 0 } else { 4 }, encoded.len() - 4);
            forms.push(encoded[first..last].into());
        }
    }
    forms
}

/// Whether any form of any secret is in something.
fn leaks(secrets: &[String], place: &str, content: &[u8]) -> Vec<String> {
    let holds = |needle: &Vec<u8>| {
        let mut windows = content.windows(needle.len());
        windows.any(|window| window[0] == needle[0] && window == needle.as_slice())
    };
    let found = secrets
        .iter()
        .filter(|secret| forms(secret).iter().any(holds));
    found
        .map(|secret| format!("{}… in {place}", &secret[..8]))
        .collect()
}

/// The files below a directory, or the file, that any form of any secret is in. They are many and
/// large.
fn files_with(secrets: &[String], below: &Path) -> String {
    let forms: Vec<Vec<u8>> = secrets.iter().flat_map(|secret| forms(secret)).collect();
    let (_directory, list) = file("forms", forms.join(&b'\n'));
    let grep = run_within(
        PATIENCE,
        Command::new("grep")
            .args(["-rlaF", "-D", "skip", "-f", &list])
            .arg(below)
            .env("LC_ALL", "C"),
        b"",
    );
    assert!(grep.status.code() < Some(2), "{grep:?}");
    grep.text().to_owned()
}

/// What every process of the machine was told to do, and what ours have in their environment.
fn processes(ours: &[u32]) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let Some(pid) = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok())
        else {
            continue;
        };
        let names: &[&str] = if ours.contains(&pid) {
            &["cmdline", "environ"]
        } else {
            &["cmdline"]
        };
        for name in names {
            // It may have ended.
            if let Ok(content) = fs::read(path.join(name)) {
                found.push((path.join(name).display().to_string(), content));
            }
        }
    }
    found
}

/// A request over REST, and the whole of its answer.
fn rest(address: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address.trim_start_matches("http://")).unwrap();
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: muster\r\nconnection: close\r\n{headers}\
         content-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

/// Everything that a caller of gRPC is told.
fn told<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>) -> Vec<u8> {
    match answer {
        Ok(answer) => format!("{answer:?}").into_bytes(),
        Err(status) => [format!("{status:?}").as_bytes(), status.details()].concat(),
    }
}

/// A request with these headers.
fn with<T>(body: T, headers: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(body);
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    request
}

/// Uses secrets over gRPC in all kinds of ways; returns what came back.
async fn misuse_grpc(address: String, secrets: &[String]) -> Vec<Vec<u8>> {
    let channel = Channel::from_shared(address).unwrap().connect_lazy();
    let mut keys = KeyServiceClient::new(channel.clone());
    let mut ingest = IngestServiceClient::new(channel.clone());
    let mut segments = SegmentServiceClient::new(channel);
    let (token, mut back) = (&secrets[2], Vec::new());
    let operator = format!("Bearer {token}");
    let operator = [("authorization", operator.as_str())];
    for secret in secrets {
        let (bearer, mistyped) = (format!("Bearer {secret}"), format!("Bearer {secret}x"));
        for headers in [
            [("authorization", bearer.as_str()), ("x-secret", secret)],
            [
                ("authorization", &mistyped),
                ("muster-caller-address", secret),
            ],
            [("authorization", secret), ("cookie", secret)],
            [
                ("authorization", &bearer),
                ("muster-partner-api-key", secret),
            ],
            [("authorization", &bearer), ("grpc-timeout", secret)],
        ] {
            let list = ingest::ListCohortsRequest::default();
            back.push(told(ingest.list_cohorts(with(list, &headers)).await));
        }
        let get = keys::GetKeyRequest {
            workspace: "secrets".into(),
            key_id: secret.clone(),
        };
        back.push(told(keys.get_key(with(get, &operator)).await));
        let elsewhere = keys::ListKeysRequest {
            workspace: secret.clone(),
            ..Default::default()
        };
        back.push(told(keys.list_keys(with(elsewhere, &operator)).await));
        let page = keys::ListKeysRequest {
            workspace: "secrets".into(),
            page_token: secret.clone(),
            ..Default::default()
        };
        back.push(told(keys.list_keys(with(page, &operator)).await));
        let search = ingest::ListCohortsRequest {
            workspace: "secrets".into(),
            name_contains: format!("{secret}\0"),
            ..Default::default()
        };
        back.push(told(ingest.list_cohorts(with(search, &operator)).await));
        for filter in [secret.clone(), format!("{PARTNER}:\"{secret}\"")] {
            let count = segments::CountSegmentRequest {
                workspace: "secrets".into(),
                audience: Some(segments::count_segment_request::Audience::Filter(
                    segments::FilterExpression {
                        form: Some(segments::filter_expression::Form::Text(filter)),
                    },
                )),
                ..Default::default()
            };
            back.push(told(segments.count_segment(with(count, &operator)).await));
        }
    }
    back
}

/// Uses secrets over REST in all kinds of ways; returns what came back.
fn misuse_rest(address: &str, secrets: &[String]) -> Vec<Vec<u8>> {
    let [key, partner_key, _] = secrets else {
        panic!("three")
    };
    let path = format!("/partners/{PARTNER}/cohorts/users");
    let json = "content-type: application/json\r\n";
    let body = |client_secret: &str, partner_api_key: &str, cohort: &str| {
        format!(
            r#"{{"client_secret": "{client_secret}", "partner_api_key": "{partner_api_key}",
                "cohort_id": {cohort}, "cohort_changes": [{{"user_ids": ["u-1"]}}]}}"#
        )
    };
    let used = rest(address, &path, json, &body(key, partner_key, "\"c\""));
    assert!(
        used.starts_with(b"HTTP/1.1 201"),
        "{}",
        String::from_utf8_lossy(&used)
    );
    let mut back = vec![used];
    for secret in secrets {
        back.push(rest(address, &path, json, &body(secret, secret, "\"c\"")));
        back.push(rest(address, &path, json, &body(partner_key, key, "7")));
        back.push(rest(address, &path, json, &body(key, partner_key, "7")));
        let sent = body(&format!("{secret}x"), secret, "\"c\"");
        back.push(rest(address, &path, json, &sent));
        back.push(rest(address, &path, json, &sent[..sent.len() - 9]));
        back.push(rest(address, &path, json, &format!("\"{secret}\"")));
        let changes = format!(
            r#"{{"client_secret": "{key}", "partner_api_key": "{partner_key}", "cohort_id": "c",
                "cohort_changes": "{secret}"}}"#
        );
        back.push(rest(address, &path, json, &changes));
        let header = format!("{json}authorization: Bearer {secret}\r\n{secret}: x\r\n");
        back.push(rest(
            address,
            &format!("/partners/{secret}/cohorts"),
            &header,
            "{}",
        ));
    }
    back
}

/// The commands of a person who has a token in the environment, also of one who mistakes it.
fn misuse_commands(muster: &Muster, endpoint: &str, secrets: &[String]) -> Vec<Vec<u8>> {
    let mut back = Vec::new();
    for secret in secrets {
        for words in [["key", "list"], ["cohort", "list"]] {
            let mut command = muster.command(&words);
            command
                .args(["--endpoint", endpoint])
                .env("MUSTER_TOKEN", secret);
            let done = run(&mut command, b"");
            back.push([&done.stdout, done.stderr.as_bytes()].concat());
        }
    }
    back
}

#[test]
fn a_planted_secret_is_found_nowhere() {
    let directory = directory();
    let data_dir = directory.path().join("data");
    let mut command = up_command(&data_dir);
    command.env("MUSTER_LOG", "trace");
    let up = Up {
        server: Server::start(&mut command, directory.path(), &data_dir),
        muster: Muster {
            data_dir: data_dir.clone(),
            workspace: String::new(),
        },
        directory,
    };
    let muster = up.workspace("secrets");
    let create: [&[&str]; 3] = [
        &["key", "create", "--partner", PARTNER],
        &["partner", "key", "create", PARTNER],
        &["token", "create", "all", "--scope", "*"],
    ];
    let secrets = create.map(|words| text(&muster.json(words), "secret").to_owned());
    let endpoints = up.endpoints();
    let (grpc, http) = (text(&endpoints, "grpc"), text(&endpoints, "rest"));

    let mut back = misuse_rest(http, &secrets);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    back.extend(runtime.block_on(misuse_grpc(grpc.to_owned(), &secrets)));
    back.extend(misuse_commands(&muster, grpc, &secrets));

    let found = leaks(&secrets, "itself", secrets[0].as_bytes());
    assert_eq!(found.len(), 1, "the search finds what is there");
    let mut leaked = Vec::new();
    for (number, answer) in back.iter().enumerate() {
        leaked.extend(leaks(&secrets, &format!("answer {number}"), answer));
    }
    let log = up.server.stderr();
    assert!(log.contains("TRACE"), "it tells all it can");
    for (place, content) in processes(&[up.server.pid(), up.postmaster()]) {
        leaked.extend(leaks(&secrets, &place, &content));
    }
    let dump = client_program("pg_dump", None, 15).unwrap();
    let url = up.database_url("muster");
    let dumped = run(Command::new(dump).arg(&url), b"").code(0).stdout;
    assert!(dumped.len() > 10_000 && String::from_utf8_lossy(&dumped).contains("credential"));
    fs::write(up.directory.path().join("dump.sql"), dumped).unwrap();
    // The log, the dump, and all that Postgres keeps: tables, write-ahead log, a log of its own.
    assert!(data_dir.join("postgres/pg_wal").is_dir());
    leaked.push(files_with(&secrets, up.directory.path()));
    assert!(leaked.concat().is_empty(), "{}", leaked.join("\n"));
    let (planted, _) = file("planted", &secrets[0]);
    assert!(files_with(&secrets, planted.path()).contains("planted"));
}
