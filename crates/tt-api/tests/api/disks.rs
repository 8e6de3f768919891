//! Templates' disks on their way out.

use crate::common::{Server, commit, server, template};
use crate::routes::code;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tt_api::ClientError;
use tt_api::access::{Disk, DiskForm};
use tt_model::{ErrorCode, Refusal, VmTemplate};
use tt_store::tables::Change;

/// Disks that are sent at once.
const SENDS_MAX: usize = 16;

/// How a host sends: `endless` has no end, `torn` can not be read to it, others are 1 MB, then a hole, then one byte.
pub fn disk(
    template: &VmTemplate,
    form: DiskForm,
    open: Arc<AtomicUsize>,
) -> Result<Disk, Refusal> {
    if template.name == "gone" {
        return Err(Refusal::new(ErrorCode::Template, "disk", "it is damaged", "build it again"));
    }
    let (mut content, bytes) = match form {
        DiskForm::Sparse => {
            (sparse(&[(0, vec![7; 1 << 20]), ((1 << 40) - 1, vec![9])], 1 << 40), None)
        }
        DiskForm::Raw | DiskForm::Qcow2 => (vec![7; 1 << 20], Some(1 << 20)),
    };
    let content: Box<dyn Read + Send> = match template.name.as_str() {
        "endless" => Box::new(std::io::repeat(7)),
        "torn" => {
            content.truncate(1 << 19);
            Box::new(content_then_error(content))
        }
        _ => Box::new(std::io::Cursor::new(content)),
    };
    let bytes = bytes.filter(|_| template.name != "endless");
    open.fetch_add(1, Ordering::SeqCst);
    Ok(Disk { bytes, content: Box::new(Counted { content, open }) })
}

struct Counted {
    content: Box<dyn Read + Send>,
    open: Arc<AtomicUsize>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.content.read(buffer)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}

fn sparse(pieces: &[(u64, Vec<u8>)], size: u64) -> Vec<u8> {
    let mut stream = Vec::new();
    let end = (size, Vec::new());
    for (at, data) in pieces.iter().chain([&end]) {
        stream.extend(at.to_le_bytes());
        stream.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        stream.extend(data);
    }
    stream
}

struct Torn;

impl Read for Torn {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::Other.into())
    }
}

fn content_then_error(content: Vec<u8>) -> impl Read + Send {
    Read::chain(std::io::Cursor::new(content), Torn)
}

fn add(server: &Server, name: &str) {
    commit(&server.tables, &Change::new().new_template(&template(name)).unwrap());
}

/// All of it: what arrived at which places, and the size.
async fn received(
    server: &Server,
    name: &str,
    form: DiskForm,
) -> Result<(Vec<(u64, usize)>, u64), ClientError> {
    let mut stream = server.client.disk(name, form).await?;
    let mut parts: Vec<(u64, usize)> = Vec::new();
    while let Some((at, bytes)) = stream.next().await? {
        match parts.last_mut().filter(|(begin, len)| begin + *len as u64 == at) {
            Some((_, len)) => *len += bytes.len(),
            None => parts.push((at, bytes.len())),
        }
    }
    Ok((parts, stream.size().unwrap()))
}

/// A client that asks for a disk and reads its first bytes only.
async fn slow(server: &Server, name: &str) -> UnixStream {
    let mut stream = UnixStream::connect(&server.socket).await.unwrap();
    let request = format!("GET /v1/disks/{name} HTTP/1.1\r\nHost: tt\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 15];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_arrives_whole_in_each_form_or_the_client_is_told() {
    let server = server();
    add(&server, "torn");
    let whole = (vec![(0, 1 << 20)], 1 << 20);
    for form in [DiskForm::Raw, DiskForm::Qcow2] {
        assert_eq!(received(&server, "micro", form).await.unwrap(), whole);
    }
    let parts = vec![(0, 1 << 20), ((1 << 40) - 1, 1)];
    assert_eq!(received(&server, "micro", DiskForm::Sparse).await.unwrap(), (parts, 1 << 40));
    for form in [DiskForm::Raw, DiskForm::Qcow2, DiskForm::Sparse] {
        let error = received(&server, "torn", form).await.unwrap_err();
        assert!(matches!(error, ClientError::Exchange { .. }), "{form:?}: {error}");
    }
    assert_eq!(server.access.disks.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_exported_is_refused_with_what_would_be_right() {
    let server = server();
    add(&server, "gone");
    let mut container = template("container");
    container.template.as_mut().unwrap().features = vec!["container".into()];
    let mut unmade = template("unmade");
    unmade.template = None;
    let change = Change::new().new_template(&container).unwrap().new_template(&unmade).unwrap();
    commit(&server.tables, &change);
    for (name, wanted) in [
        ("none", ErrorCode::NotFound),
        ("gone", ErrorCode::Template),
        ("unmade", ErrorCode::State),
        ("container", ErrorCode::Unsupported),
    ] {
        assert_eq!(code(received(&server, name, DiskForm::Raw).await), wanted, "{name}");
    }
    let ClientError::Problem(problem) =
        server.client.disk("container", DiskForm::Raw).await.unwrap_err()
    else {
        panic!("no problem")
    };
    assert!(problem.detail.contains("no disk, only container"), "{problem:?}");
    let answer = server.raw(b"GET /v1/disks/micro?format=vhd HTTP/1.0\r\n\r\n").await;
    assert_eq!((answer.status, answer.problem().code), (400, ErrorCode::Invalid));
    server.client.remove_template("gone").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_exported_is_not_removed_and_no_more_than_some_are_at_once() {
    let server = server();
    add(&server, "endless");
    let mut slow_ones = Vec::new();
    for _ in 0..SENDS_MAX {
        slow_ones.push(slow(&server, "endless").await);
    }
    assert_eq!(code(received(&server, "micro", DiskForm::Raw).await), ErrorCode::Busy);
    assert_eq!(code(server.client.remove_template("endless").await), ErrorCode::InUse);
    // Others are removed, and what is not read any more.
    slow_ones.pop();
    let deadline = Instant::now() + Duration::from_secs(20);
    while received(&server, "micro", DiskForm::Raw).await.is_err() {
        assert!(Instant::now() < deadline, "its place was not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.client.remove_template("micro").await.unwrap();
    assert_eq!(code(server.client.remove_template("endless").await), ErrorCode::InUse);
    drop(slow_ones);
    while server.client.remove_template("endless").await.is_err() {
        assert!(Instant::now() < deadline, "it is in use for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(code(received(&server, "endless", DiskForm::Raw).await), ErrorCode::State);
    assert_eq!(server.access.disks.load(Ordering::SeqCst), 0);
}
