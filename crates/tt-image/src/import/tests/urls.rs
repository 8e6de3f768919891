//! Fetching: what is cut off is gone on with, and servers that would do harm are refused.

use super::server::{Server, answer, header};
use super::*;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn import_from(url: String) -> Import {
    Import { from: url, digest: None, format: None }
}

/// The part of `content` that a request asks for, under a tag.
fn ranged(head: &str, stream: &mut TcpStream, content: &[u8], tag: &str) -> std::io::Result<()> {
    let from = header(head, "range").and_then(|range| range.strip_prefix("bytes="));
    let from = from.and_then(|range| range.strip_suffix('-')?.parse::<usize>().ok());
    match from.filter(|_| header(head, "if-range") == Some(tag)) {
        Some(from) => {
            let (last, total) = (content.len() - 1, content.len());
            let headers = format!("ETag: {tag}\r\nContent-Range: bytes {from}-{last}/{total}\r\n");
            answer(stream, "206 Partial Content", &headers, &content[from..])
        }
        None => answer(stream, "200 OK", &format!("ETag: {tag}\r\n"), content),
    }
}

/// Only the first third of an answer, and then the end.
fn cut(stream: &mut TcpStream, tag: &str, content: &[u8]) -> std::io::Result<()> {
    let head =
        format!("HTTP/1.1 200 OK\r\nETag: {tag}\r\nContent-Length: {}\r\n\r\n", content.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(&content[..content.len() / 3])
}

#[test]
fn what_was_cut_off_is_gone_on_with() {
    let count = AtomicUsize::new(0);
    let server = Server::new(move |head, stream| match count.fetch_add(1, Ordering::Relaxed) {
        0 => cut(stream, "\"one\"", &plain()),
        _ => ranged(head, stream, &plain(), "\"one\""),
    });
    let lab = Lab::new();
    let mut import = import_from(server.url("disk.raw"));
    import.digest = Some(digest::of_bytes(&plain()));
    lab.import("disk", &import).unwrap();
    let requests = server.requests.lock().unwrap();
    let asked = header(&requests[1], "range").unwrap().to_owned();
    assert_eq!((requests.len(), asked), (2, format!("bytes={}-", plain().len() / 3)));
}

#[test]
fn another_try_goes_on_and_what_has_changed_is_fetched_anew() {
    let leads = Arc::new(AtomicUsize::new(0));
    let count = leads.clone();
    let server = Server::new(move |head, stream| match head {
        // The same place leads to what is cut off at first, and to another file later.
        head if head.starts_with("GET /disk") => {
            let path = if count.fetch_add(1, Ordering::Relaxed) < 8 { "cut" } else { "whole" };
            answer(stream, "302 Found", &format!("Location: /{path}\r\n"), b"")
        }
        head if head.starts_with("GET /cut") => cut(stream, "\"old\"", &plain()),
        head => ranged(head, stream, &plain(), "\"new\""),
    });
    let lab = Lab::new();
    let import = import_from(server.url("disk?sig=secret"));
    let error = lab.import("disk", &import).unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(lab.catalogue.drafts().unwrap(), ["disk"], "what was fetched is gone");
    let note =
        std::fs::read_to_string(lab.dir.path().join("data/making/disk/source.note")).unwrap();
    assert!(note.contains("old") && !note.contains("secret"), "{note}");
    while lab.import("disk", &import).is_err() {
        assert!(leads.load(Ordering::Relaxed) < 20, "it never ends");
    }
    let template = lab.catalogue.get("disk").unwrap();
    let disk = lab.dir.path().join("data").join(template.path).join(DISK);
    assert!(std::fs::read(disk).unwrap() == plain(), "two files were mixed");
}

#[test]
fn a_fetch_that_nobody_wants_ends_soon_and_leaves_nothing() {
    struct Impatient(Instant);
    impl Progress for Impatient {
        fn step(&self, _what: &str) {}
        fn is_wanted(&self) -> bool {
            self.0.elapsed() < Duration::from_millis(300)
        }
    }
    let server = Server::new(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")?;
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    });
    let lab = Lab::new();
    let draft = lab.catalogue.draft("disk", &Quiet).unwrap();
    let facts = Facts { name: "disk".into(), ..Facts::default() };
    let begin = Instant::now();
    let import = import_from(server.url("x"));
    let made = lab.catalogue.import_within(&draft, &import, &facts, &lab.bounds, &Impatient(begin));
    assert!(matches!(made, Err(ImageError::Unwanted)), "{made:?}");
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    lab.catalogue.discard("disk").unwrap();
    assert_eq!(tree(&lab.dir.path().join("data")), BTreeMap::new());
}

/// What, how the server answers, and what the refusal must say.
type Case = (&'static str, fn(&str, &mut TcpStream) -> std::io::Result<()>, &'static str);

pub(super) const SERVERS: &[Case] = &[
    (
        "a redirect to a file",
        |_, s| answer(s, "302 Found", "Location: file:///etc/shadow\r\n", b""),
        "redirects to what is not allowed",
    ),
    (
        "a redirect with a password",
        |_, s| answer(s, "302 Found", "Location: http://a:b@127.0.0.1/\r\n", b""),
        "redirects to what is not allowed",
    ),
    (
        "a redirect to itself",
        |_, s| answer(s, "302 Found", "Location: /again\r\n", b""),
        "redirects more than 3 times",
    ),
    ("a redirect to nowhere", |_, s| answer(s, "302 Found", "", b""), "302"),
    (
        "a redirect that is no text",
        |_, s| answer(s, "302 Found", "Location: \u{fffd}\r\n", b""),
        "no URL",
    ),
    (
        "an endless body",
        |_, s| {
            s.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            loop {
                s.write_all(b"100000\r\n")?;
                s.write_all(&vec![0; 1 << 20])?;
                s.write_all(b"\r\n")?;
            }
        },
        "the most that fits here",
    ),
    (
        "an absurd length",
        |_, s| s.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000000000\r\n\r\n"),
        "the most that fits here",
    ),
    (
        "a length that is no number",
        |_, s| s.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nx"),
        "can not be fetched",
    ),
    (
        "two lengths",
        |_, s| s.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 9\r\n\r\nx"),
        "can not be fetched",
    ),
    (
        "a length beyond the body, every time",
        |_, s| s.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"),
        "can not be fetched",
    ),
    (
        "a body that drips",
        |_, s| {
            s.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")?;
            loop {
                s.write_all(b"x")?;
                std::thread::sleep(Duration::from_millis(200));
            }
        },
        "too slow",
    ),
    (
        "a head that never comes",
        |_, _| {
            std::thread::sleep(Duration::from_secs(3));
            Ok(())
        },
        "no answer within 2 s",
    ),
    (
        "a head that never ends",
        |_, s| {
            s.write_all(b"HTTP/1.1 200 OK\r\n")?;
            loop {
                s.write_all(format!("X: {}\r\n", "x".repeat(1000)).as_bytes())?;
            }
        },
        "can not be fetched",
    ),
    ("no HTTP", |_, s| s.write_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "can not be fetched"),
    ("not found", |_, s| answer(s, "404 Not Found", "", b"x"), "404"),
    ("broken", |_, s| answer(s, "500 Oh no", "", b"x"), "500"),
    (
        "a part that nobody asked for",
        |_, s| answer(s, "206 Partial Content", "Content-Range: bytes 7-8/9\r\n", b"xy"),
        "it changes while it is fetched",
    ),
];

#[test]
fn hostile_servers_are_refused() {
    // Some take their time: side by side.
    std::thread::scope(|scope| {
        for (what, act, says) in SERVERS {
            scope.spawn(move || {
                let server = Server::new(*act);
                let mut lab = Lab::new();
                lab.bounds.bytes_max = 32 << 20;
                let why = lab.refused(what, &import_from(server.url("disk")));
                assert!(why.contains(says), "{what}: {why:?} does not say {says:?}");
            });
        }
    });
}

/// What, the URL, made of a server that speaks plain HTTP and a place where nobody listens, and what the refusal must say.
type Url = (&'static str, fn(SocketAddr, SocketAddr) -> String, &'static str);

pub(super) const URLS: &[Url] = &[
    ("a file", |_, _| "file:///etc/shadow".into(), "can not be fetched"),
    ("FTP", |_, _| "ftp://127.0.0.1/x".into(), "write http:// or https://"),
    ("a password", |_, _| "http://root:secret@127.0.0.1/x".into(), "password"),
    ("no server", |_, _| "http:///x".into(), "no URL"),
    ("a path without end", |_, _| format!("http://127.0.0.1/{}", "x".repeat(3000)), "longer than"),
    ("nobody there", |_, closed| format!("http://{closed}/x"), "can not be fetched"),
    ("no TLS", |plain, _| format!("https://{plain}/x"), "can not be fetched"),
];

#[test]
fn a_signature_of_a_url_is_in_no_message() {
    let server = Server::new(|head, stream| match head {
        head if head.starts_with("GET /gone") => answer(stream, "404 Not Found", "", b""),
        head if head.starts_with("GET /busy") => answer(stream, "503 Busy", "", b""),
        _ => answer(stream, "200 OK", "", b"no disk"),
    });
    let lab = Lab::new();
    for path in ["gone", "busy", "text"] {
        let url = server.url(path);
        let error = lab.import("disk", &import_from(format!("{url}?sig=secret"))).unwrap_err();
        let why = chain(&error);
        assert!(why.contains(&url) && !why.contains("secret"), "{path}: {why}");
    }
}

#[test]
fn hostile_urls_are_refused() {
    let plain_server = Server::new(|_, stream| answer(stream, "200 OK", "", b"x"));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (what, url, says) in URLS {
        let lab = Lab::new();
        let url = url(plain_server.address, closed);
        let why = lab.refused(what, &import_from(url));
        assert!(why.contains(says), "{what}: {why:?} does not say {says:?}");
    }
}
