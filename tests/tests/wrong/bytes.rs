//! Bytes that are hardly HTTP, or never end: whatever is answered, nothing changes and the daemon lives.

use super::records::{assert_unchanged, records};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use testkit::Lab;

const HEAD: &str =
    "PUT /v1/envs/x HTTP/1.1\r\nHost: tt\r\nIdempotency-Key: k\r\nConnection: close\r\n";

#[test]
fn strange_bytes_change_nothing() {
    let Some(lab) = Lab::new("strange_bytes_change_nothing") else { return };
    let before = records(&lab);
    for bytes in [
        &b"\0\0\0\0"[..],
        b"GET\r\n\r\n",
        b"GET /v1/envs\r\n\r\n",
        b"GET /v1/envs HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PUT /v1/envs/x HTTP/1.1\r\nHost: tt\r\nContent-Length: -1\r\n\r\n",
        b"PUT /v1/envs/x HTTP/1.1\r\nHost: tt\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"PUT /v1/envs/x HTTP/1.1\r\nHost: tt\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"PUT /v1/envs/x HTTP/1.1\r\nHost: tt\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let answer = lab.raw(bytes);
        assert!(answer.status == 0 || answer.status >= 400, "{bytes:?}: {}", answer.text);
    }
    let headers = format!("{HEAD}{}\r\n", "X-Filler: 0123456789\r\n".repeat(20_000));
    assert!(lab.raw(headers.as_bytes()).status >= 400);
    what_says_that_it_is_large_is_refused_at_once(&lab);
    an_endless_body_ends(&lab);
    silent_clients_are_nobodys_trouble(&lab);
    a_stream_without_an_upgrade_is_refused(&lab);
    assert_unchanged(&lab, &before);
    lab.finish();
}

fn what_says_that_it_is_large_is_refused_at_once(lab: &Lab) {
    let head = format!("{HEAD}Content-Length: 1073741824\r\n\r\n");
    let answer = lab.raw(head.as_bytes());
    assert_eq!((answer.status, answer.code()), (413, "ERR_TT_TOO_LARGE"), "{}", answer.text);
}

fn an_endless_body_ends(lab: &Lab) {
    let mut stream = UnixStream::connect(lab.socket()).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).unwrap();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let taken = (0..4096).take_while(|_| stream.write_all(chunk.as_bytes()).is_ok()).count();
    assert!(taken < 4096, "256 MiB of a body were taken");
    let mut text = String::new();
    // The server may have closed before all was read; then there is no answer to see.
    if stream.read_to_string(&mut text).is_ok() && !text.is_empty() {
        assert!(text.starts_with("HTTP/1.1 413"), "{text}");
    }
}

fn silent_clients_are_nobodys_trouble(lab: &Lab) {
    let silent: Vec<UnixStream> = (0..200)
        .map(|_| {
            let mut stream = UnixStream::connect(lab.socket()).unwrap();
            stream.write_all(b"GET /v1/en").unwrap();
            stream
        })
        .collect();
    assert_eq!(lab.get("/v1/envs").unwrap().status, 200);
    drop(silent);
}

fn a_stream_without_an_upgrade_is_refused(lab: &Lab) {
    let document = lab.get("/v1/openapi.json").unwrap().body;
    let paths = document["paths"].as_object().unwrap();
    let streams: Vec<&String> = paths
        .keys()
        .filter(|path| path.ends_with("/console") || path.ends_with("/streams"))
        .collect();
    assert!(!streams.is_empty(), "{:?}", paths.keys());
    for path in streams {
        let path = path.replace("{env}", "x").replace("{vm}", "a");
        let answer = lab.get(&path).unwrap();
        assert!((400..500).contains(&answer.status), "{path}: {}", answer.text);
        assert!(answer.code().starts_with("ERR_TT_"), "{path}: {}", answer.text);
    }
}
