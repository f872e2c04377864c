use std::{fmt::Write as _, io::Write as _, time::Instant};

use flate2::{Compression, write::GzEncoder};
use tempfile::TempDir;

use muster_domain::identifier::IdentifierRef;

use super::*;

struct Sample {
    _dir: TempDir,
    path: PathBuf,
}

fn sample(bytes: &[u8]) -> Sample {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("audience.csv");
    std::fs::write(&path, bytes).unwrap();
    Sample { _dir: dir, path }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The identifiers of a file as text, and what was in it.
fn read(bytes: &[u8]) -> (Vec<String>, FileTally) {
    let sample = sample(bytes);
    let source = FileSource::open(&sample.path).unwrap();
    let items: Vec<_> = source.read().unwrap().map(Result::unwrap).collect();
    let tally = source.tally().unwrap();
    assert_eq!(tally.identifiers, items.len() as u64);
    assert_eq!(tally.rows, tally.identifiers + tally.malformed.len() as u64);
    let shown = items.iter().map(|(_, identifier)| identifier.to_string());
    (shown.collect(), tally)
}

fn defects(tally: &FileTally) -> Vec<(u64, u64, Defect)> {
    let rows = tally.malformed.iter();
    rows.map(|row| (row.line, row.last_line, row.defect))
        .collect()
}

fn header_error(bytes: &[u8]) -> HeaderError {
    let sample = sample(bytes);
    match FileSource::open(&sample.path).unwrap_err() {
        FileError::Header(error) => error,
        other => panic!("{other}"),
    }
}

#[test]
fn the_first_filled_column_identifies() {
    let (ids, tally) = read(
        b"country,device_id,alias:newsletter,external_id\n\
          fr,d1,n1,u1\n\
          ,,n2,u2\n\
          de,,,u3\n",
    );
    assert_eq!(
        ids,
        [
            "device_id \"d1\"",
            "alias newsletter:\"n2\"",
            "external_id \"u3\""
        ]
    );
    assert_eq!(tally.malformed, []);
}

#[test]
fn ends_of_lines_marks_and_quotes_do_not_matter() {
    let want = [
        "external_id \"u,1\"",
        "external_id \"u\\\"2\"",
        "external_id \" u3 \"",
    ];
    let text = "note,external_id\n\"two\nlines\",\"u,1\"\nx,\"u\"\"2\"\n\n,\" u3 \"";
    for text in [
        text.to_owned(),
        text.replace('\n', "\r\n"),
        text.replace('\n', "\r"),
        format!("{text}\n"),
        format!("\n\r\n{text}\n\n"),
    ] {
        for bytes in [
            text.as_bytes().to_vec(),
            format!("\u{feff}{text}").into_bytes(),
            gzip(text.as_bytes()),
            gzip(format!("\u{feff}{text}").as_bytes()),
        ] {
            let (ids, tally) = read(&bytes);
            assert_eq!(ids, want, "{text:?}");
            assert_eq!(tally.malformed, []);
        }
    }
    let marked = "\u{feff}\"external_id\"\nu1\n";
    assert_eq!(read(marked.as_bytes()).0, ["external_id \"u1\""]);
    let header = b" external_id ,\"alias: x\"\nu1,\n";
    assert_eq!(read(header).0, ["external_id \"u1\""]);
}

#[test]
fn gzip_may_come_in_members_and_must_be_whole() {
    let mut bytes = gzip(b"external_id\nu1\n");
    bytes.extend(gzip(b"u2\n"));
    assert_eq!(read(&bytes).0.len(), 2);
    bytes.truncate(bytes.len() - 4);
    let sample = sample(&bytes);
    let source = FileSource::open(&sample.path).unwrap();
    let last = source.read().unwrap().last().unwrap();
    assert!(last.is_err(), "a cut file must not look complete");
    assert_eq!(source.tally(), None);
}

#[test]
fn malformed_rows_are_accounted_with_their_lines() {
    let (ids, tally) = read(
        b"external_id,device_id\r\n\
          u1,\r\n\
          u2\r\n\
          u3,,x\r\n\
          \r\n\
          ,\r\n\
          \xff,d\r\n\
          ,\"d\r\n1\"\r\n\
          \"u\r\n4\",d\r\n\
          u5,d5",
    );
    assert_eq!(ids, ["external_id \"u1\"", "external_id \"u5\""]);
    let count = |found| Defect::FieldCount { expected: 2, found };
    assert_eq!(
        defects(&tally),
        [
            (3, 3, count(1)),
            (4, 4, count(3)),
            (6, 6, Defect::NoIdentifier),
            (7, 7, Defect::NotUtf8),
            (8, 9, Defect::LineBreak),
            (10, 11, Defect::LineBreak),
        ]
    );
    assert_eq!(
        tally.malformed[0].to_string(),
        "line 3: 1 fields where the header has 2"
    );
}

#[test]
fn text_that_identifies_nobody_may_be_anything() {
    let (ids, tally) = read(b"name,external_id\nJos\xe9,u1\n\"a\nb\",u2\n");
    assert_eq!(ids.len(), 2);
    assert_eq!(tally.malformed, []);
}

#[test]
fn a_stray_quote_neither_hides_what_it_swallows_nor_fills_the_memory() {
    let mut text = "external_id\nu1\n\"u2\n".to_owned();
    for n in 0..300_000 {
        writeln!(text, "user-{n}").unwrap();
    }
    let (ids, tally) = read(text.as_bytes());
    assert_eq!(ids, ["external_id \"u1\""]);
    let [row] = tally.malformed.as_slice() else {
        panic!("one row, not {}", tally.malformed.len());
    };
    assert_eq!((row.line, row.defect), (3, Defect::TooLarge));
    assert!(row.last_line >= 300_003, "{row}");
}

#[test]
fn a_row_after_one_that_is_too_large_is_read() {
    for large in ["x".repeat(3 * 1024 * 1024), "x,".repeat(10_000)] {
        let (ids, tally) = read(format!("external_id\n{large}\nu2\n").as_bytes());
        assert_eq!(ids, ["external_id \"u2\""]);
        assert_eq!(defects(&tally), [(2, 2, Defect::TooLarge)]);
    }
}

#[test]
fn an_identifier_that_is_too_long_to_match_is_sent_to_be_accounted() {
    let (ids, tally) = read(format!("external_id\n{}\n", "x".repeat(600)).as_bytes());
    assert_eq!((ids.len(), tally.malformed.len()), (1, 0));
}

#[test]
fn a_header_that_identifies_nobody_names_what_it_has() {
    let error = header_error(b"email,Phone Number\nx,y\n");
    let text = error.to_string();
    for part in [
        "external_id",
        "device_id",
        "alias:LABEL",
        "\"email\"",
        "\"Phone Number\"",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(header_error(b""), HeaderError::Empty);
    assert_eq!(header_error(b"\n\n"), HeaderError::Empty);
    assert_eq!(header_error("\u{feff}".as_bytes()), HeaderError::Empty);
    assert_eq!(
        header_error(b"external_id,alias:\n"),
        HeaderError::AliasWithoutLabel
    );
    assert_eq!(header_error(&b"x".repeat(2 << 20)), HeaderError::TooLarge);
}

#[test]
fn a_header_alone_is_an_empty_list() {
    assert_eq!(read(b"external_id").1, FileTally::default());
}

#[test]
fn a_missing_file_is_told() {
    let error = FileSource::open(Path::new("/nonexistent.csv")).unwrap_err();
    assert!(matches!(error, FileError::Io(_)));
}

#[test]
fn it_can_be_read_again_and_tells_how_far_it_is() {
    let mut text = "external_id\n".to_owned();
    for n in 0..100_000 {
        writeln!(text, "user-{n}").unwrap();
    }
    let sample = sample(&gzip(text.as_bytes()));
    let source = FileSource::open(&sample.path).unwrap();
    let clone = source.clone();
    let mut halfway = source.read().unwrap();
    assert!(halfway.nth(10).unwrap().is_ok());
    for _ in 0..2 {
        assert_eq!(clone.read().unwrap().count(), 100_000);
        assert_eq!(source.read_bytes(), source.total_bytes());
        assert_eq!(source.tally().unwrap().rows, 100_000);
    }
}

#[test]
fn a_million_lines_take_seconds() {
    let mut text = "external_id,country\r\n".to_owned();
    for n in 0..1_000_000 {
        write!(text, "customer-{n:016},fr\r\n").unwrap();
    }
    let sample = sample(text.as_bytes());
    let source = FileSource::open(&sample.path).unwrap();
    let began = Instant::now();
    assert_eq!(source.read().unwrap().count(), 1_000_000);
    let took = began.elapsed();
    println!("{took:?}");
    // Generous: the build is not optimised and the machine may be busy.
    assert!(took.as_secs() < 30, "{took:?}");
}

#[test]
fn what_is_no_regular_file_is_refused_because_it_is_read_more_than_once() {
    for path in ["/", "/dev/null"] {
        let error = FileSource::open(Path::new(path)).unwrap_err();
        assert!(matches!(error, FileError::NotAFile), "{path}: {error}");
    }
}

fn exact<const N: usize>(ids: [&str; N]) -> [String; N] {
    ids.map(|id| IdentifierRef::external_id(id).to_owned().to_string())
}

#[test]
fn an_audience_that_muster_wrote_is_read_back_exactly() {
    let (ids, _) = read(b"user_no,external_id\n7,'=1+1\n8,''+1\n9,'x'\n");
    assert_eq!(ids, exact(["=1+1", "'+1", "'x'"]));
    // In files of others an apostrophe belongs to the identifier.
    let (ids, _) = read(b"external_id\n'=1\n");
    assert_eq!(ids, exact(["'=1"]));
}
