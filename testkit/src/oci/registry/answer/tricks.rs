//! Answers byte by byte, right ones and wrong ones.

use super::super::super::digest;
use super::super::store::Asked;
use super::{Never, Trick};
use crate::Must;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, header};
use futures_util::stream::unfold;
use std::io;
use std::time::Duration;

/// Sent at once by what has no end.
const PIECE: &[u8] = &[b' '; 64 << 10];
/// Between two bytes of what is slow.
const PAUSE: Duration = Duration::from_millis(100);

/// An answer without a body.
pub(super) fn status(status: u16) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status.try_into().must("a status");
    response
}

/// The same with one header.
pub(super) fn with(code: u16, name: &'static str, value: &str) -> Response<Body> {
    set(status(code), name, value)
}

/// The content that is asked for, or what is made of it.
pub(super) fn played(
    trick: Option<Trick>,
    asked: &Asked,
    media_type: &str,
    mut content: Vec<u8>,
) -> Response<Body> {
    let length = content.len();
    let plain = |content: Vec<u8>| set(Response::new(content.into()), "content-type", media_type);
    match trick {
        None => set(ranged(asked, &content), "content-type", media_type),
        Some(Trick::Other) => {
            // Within a JSON text it is still one.
            let at = content.iter().rposition(u8::is_ascii_digit).unwrap_or(length / 2);
            content[at] ^= 1;
            plain(content)
        }
        Some(Trick::Cut) => {
            content.truncate(length / 2);
            // What was sent is to arrive before the connection breaks.
            let cut = unfold(Some(Bytes::from(content)), |left| async {
                match left {
                    Some(content) if !content.is_empty() => Some((Ok(content), Some(Bytes::new()))),
                    Some(_) => {
                        tokio::time::sleep(PAUSE).await;
                        Some((Err(io::Error::from(io::ErrorKind::BrokenPipe)), None))
                    }
                    None => None,
                }
            });
            let response = Response::new(Body::from_stream(cut));
            set(set(response, "content-type", media_type), "content-length", &length.to_string())
        }
        Some(Trick::Endless) => {
            let pieces = unfold((), |()| async { Some((io::Result::Ok(PIECE), ())) });
            set(Response::new(Body::from_stream(pieces)), "content-type", media_type)
        }
        Some(Trick::Slow) => {
            let bytes = unfold((), |()| async {
                tokio::time::sleep(PAUSE).await;
                Some((io::Result::Ok(&PIECE[..1]), ()))
            });
            set(Response::new(Body::from_stream(bytes)), "content-type", media_type)
        }
        Some(Trick::Silent) => {
            let mut response = status(200);
            response.extensions_mut().insert(Never);
            response
        }
        Some(Trick::Huge(bytes)) => plain(vec![b' '; bytes]),
        Some(Trick::Status(code, name, value)) => with(code, name, &value),
        Some(Trick::Header(name, value)) => set(plain(content), name, &value),
        Some(Trick::Body(text)) => plain(text.into_bytes()),
        Some(Trick::Redirect(to)) => with(307, "location", &to),
        Some(Trick::Loop) => with(307, "location", &asked.path),
        Some(Trick::OtherRange) => {
            let end = length.saturating_sub(1);
            let range = format!("bytes 1-{end}/{length}");
            let mut response = set(plain(content.split_off(1)), "content-range", &range);
            *response.status_mut() = 206.try_into().must("a status");
            response
        }
        Some(Trick::NoRange) => plain(content),
    }
}

/// All of it, or from where the request says.
fn ranged(asked: &Asked, content: &[u8]) -> Response<Body> {
    let from = asked.range.as_deref().and_then(|range| range.strip_prefix("bytes="));
    let from = from.and_then(|range| range.strip_suffix('-')?.parse::<usize>().ok());
    let response = match from {
        None => Response::new(content.to_vec().into()),
        Some(from) if from >= content.len() => status(416),
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
            let mut response = Response::new(content[from..].to_vec().into());
            *response.status_mut() = 206.try_into().must("a status");
            set(response, "content-range", &range)
        }
    };
    set(response, "docker-content-digest", &digest(content))
}

fn set(mut response: Response<Body>, name: &'static str, value: &str) -> Response<Body> {
    let value = HeaderValue::from_str(value).must("a value of a header");
    response.headers_mut().insert(header::HeaderName::from_static(name), value);
    response
}
