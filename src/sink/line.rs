//! One event, one line: what the sinks that write lines make of a body.

use std::borrow::Cow;

use super::columns::is_json;

/// The body as one line, without its newline. A JSON value that spans lines is put on one; its
/// members keep their order and its numbers their digits. `None`: a text that spans lines.
pub(super) fn one_line(body: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !body.contains(&b'\n') {
        return Some(Cow::Borrowed(body));
    }
    let text = std::str::from_utf8(body).ok()?;
    is_json(text).then(|| Cow::Owned(compact(body)))
}

/// Leaves out the whitespace between the tokens of a valid JSON text.
fn compact(json: &[u8]) -> Vec<u8> {
    let mut line = Vec::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for &byte in json {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if byte.is_ascii_whitespace() {
            continue;
        } else {
            in_string = byte == b'"';
        }
        line.push(byte);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_its_order_and_digits_and_text_its_bytes() {
        let json = b"{\n  \"b\": \"x \\\" \\\\\",\r\n\t\"a\": [1.50, 1e2, \" \"]\n}\n";
        let line = one_line(json).unwrap();
        assert_eq!(line, br#"{"b":"x \" \\","a":[1.50,1e2," "]}"#.as_slice());
        for body in [b"{ \"a\": 1 }\r".as_slice(), b"", b"\xff\x00"] {
            assert!(matches!(one_line(body), Some(Cow::Borrowed(same)) if same == body));
        }
        for body in [b"two\nlines".as_slice(), b"{\"a\":\n", b"\xff\n"] {
            assert_eq!(one_line(body), None);
        }
    }
}
