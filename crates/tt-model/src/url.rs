//! How a URL is shown: in messages, logs and descriptions there is nothing of it that may open a door. It fetches nothing.

/// Most of a URL that is shown.
const CHARS_MAX: usize = 300;

/// A URL as it may be kept and shown: what stands behind a `?` may be a signature, and what stands before an `@` a password.
#[must_use]
pub fn open_url(url: &str) -> String {
    let open = url.split(['?', '#']).next().unwrap_or_default();
    match open.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
        None => open.to_owned(),
    }
}

/// As [`open_url`], and no more of it than belongs into a message.
#[must_use]
pub fn shown_url(url: &str) -> String {
    open_url(url).chars().take(CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_open_a_door_is_not_shown() {
        for (url, shown) in [
            ("https://a.org:8443/x/y.img", "https://a.org:8443/x/y.img"),
            ("https://a.org/x?X-Amz-Signature=secret&y=z", "https://a.org/x"),
            ("https://a.org?sig=secret", "https://a.org"),
            ("https://a.org/x#token=secret", "https://a.org/x"),
            ("http://user:secret@a.org/x", "http://a.org/x"),
            ("http://user:sec@ret@a.org", "http://a.org"),
            ("http://a.org/x@2.img?sig=secret", "http://a.org/x@2.img"),
            ("", ""),
        ] {
            assert_eq!(shown_url(url), shown, "{url}");
        }
        let long = format!("http://a/{}", "é".repeat(2000));
        assert_eq!(shown_url(&long).chars().count(), CHARS_MAX);
        assert_eq!(open_url(&format!("{long}?x")), long);
    }
}
