//! Sparse files in PAX form (GNU tar manual, "Storing Sparse Files"): versions 0.0 and 0.1, whose map stands in the
//! PAX records, and 1.0, whose map is the beginning of the content. The older GNU form is read by the tar crate.

use std::io::Read;

use tar::Entry;

use super::refusal::Refusal;

/// Most parts of a file between holes.
const MOST: usize = 1 << 18;
/// What the map at the beginning of the content is rounded up to.
const BLOCK: usize = 512;

/// What the PAX records say of a sparse file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sparse {
    /// Its name, where the entry's own is one made up.
    pub(super) name: Option<Vec<u8>>,
    /// Its size, holes included.
    pub(super) size: u64,
    map: Option<Vec<(u64, u64)>>,
}

/// Reads the PAX records; `None` when they say nothing of holes.
pub(super) fn read<R: Read>(entry: &mut Entry<'_, R>) -> Result<Option<Sparse>, String> {
    let records = entry.pax_extensions().map_err(|error| error.to_string())?;
    let Some(records) = records else { return Ok(None) };
    let mut pairs = Vec::new();
    for record in records {
        let record = record.map_err(|error| format!("its PAX records are damaged: {error}"))?;
        if let Some(key) = record.key().ok().and_then(|key| key.strip_prefix("GNU.sparse.")) {
            pairs.push((key.to_owned(), record.value_bytes().to_vec()));
        }
    }
    if pairs.is_empty() { Ok(None) } else { of_records(pairs).map(Some) }
}

fn of_records(pairs: Vec<(String, Vec<u8>)>) -> Result<Sparse, String> {
    let mut sparse = Sparse::default();
    let (mut numbers, mut major, mut size) = (Vec::new(), 0, None);
    for (key, value) in pairs {
        match key.as_str() {
            "name" => sparse.name = Some(value),
            "size" | "realsize" => size = Some(number(&value)?),
            "major" => major = number(&value)?,
            "offset" | "numbytes" => {
                // They come in turns.
                if (key == "offset") != numbers.len().is_multiple_of(2) {
                    return Err(damaged());
                }
                numbers.push(number(&value)?);
            }
            "map" => {
                for part in value.split(|b| *b == b',').filter(|part| !part.is_empty()) {
                    numbers.push(number(part)?);
                }
            }
            _ => {}
        }
    }
    sparse.size = size.ok_or_else(damaged)?;
    match major {
        0 => sparse.map = Some(in_pairs(&numbers)?),
        1 => {}
        other => return Err(format!("it is a sparse file of version {other}, which is not known")),
    }
    Ok(sparse)
}

impl Sparse {
    /// Where the parts between holes are, in order and within the size; takes the map from the content where it
    /// stands there.
    pub(super) fn parts<R: Read>(&mut self, content: &mut R) -> Result<Vec<(u64, u64)>, Refusal> {
        let map = match self.map.take() {
            Some(map) => map,
            None => from_content(content)?,
        };
        let mut end = 0;
        for (offset, length) in &map {
            let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= self.size);
            end = next.ok_or_else(damaged)?;
        }
        Ok(map)
    }
}

/// Decimal numbers, one a line: how many parts there are, and offset and length of each.
fn from_content<R: Read>(content: &mut R) -> Result<Vec<(u64, u64)>, Refusal> {
    let (mut numbers, mut text, mut wanted) = (Vec::new(), Vec::new(), 1);
    let mut block = [0; BLOCK];
    while numbers.len() < wanted {
        content.read_exact(&mut block).map_err(Refusal::Stream)?;
        text.extend_from_slice(&block);
        while numbers.len() < wanted {
            let Some(end) = text.iter().position(|b| *b == b'\n') else { break };
            let line: Vec<u8> = text.drain(..=end).collect();
            numbers.push(number(&line[..end])?);
            if numbers.len() == 1 {
                let count = usize::try_from(numbers[0]).ok().filter(|count| *count <= MOST);
                wanted = 1 + 2 * count.ok_or_else(too_many)?;
            }
        }
        // No number is that long.
        if numbers.len() < wanted && text.len() > BLOCK {
            return Err(damaged().into());
        }
    }
    Ok(in_pairs(&numbers[1..])?)
}

fn in_pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>, String> {
    if !numbers.len().is_multiple_of(2) {
        return Err(damaged());
    }
    if numbers.len() / 2 > MOST {
        return Err(too_many());
    }
    Ok(numbers.chunks(2).map(|pair| (pair[0], pair[1])).collect())
}

fn number(text: &[u8]) -> Result<u64, String> {
    std::str::from_utf8(text).ok().and_then(|text| text.trim().parse().ok()).ok_or_else(damaged)
}

fn damaged() -> String {
    "its map of holes is damaged".to_owned()
}

fn too_many() -> String {
    format!("it has more than {MOST} parts between holes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Result<Sparse, String> {
        of_records(pairs.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect())
    }

    #[test]
    fn maps_stand_in_records_or_in_the_content() {
        let none: &mut &[u8] = &mut &b""[..];
        let mut old =
            pairs(&[("size", "10"), ("offset", "2"), ("numbytes", "3"), ("offset", "9"), ("numbytes", "1")]);
        assert_eq!(old.as_mut().unwrap().parts(none).ok(), Some(vec![(2, 3), (9, 1)]));
        let mut middle = pairs(&[("size", "10"), ("map", "2,3,9,1"), ("name", "x")]).unwrap();
        assert_eq!(
            (middle.name.clone(), middle.parts(none).ok()),
            (Some(b"x".to_vec()), Some(vec![(2, 3), (9, 1)]))
        );
        let mut new = pairs(&[("major", "1"), ("minor", "0"), ("realsize", "10")]).unwrap();
        let mut content = b"2\n2\n3\n9\n1\n".to_vec();
        content.resize(512, 0);
        content.extend_from_slice(b"data");
        let mut rest = &content[..];
        assert_eq!(new.parts(&mut rest).ok(), Some(vec![(2, 3), (9, 1)]));
        assert_eq!(rest, b"data");
    }

    #[test]
    fn maps_that_cannot_be_are_refused() {
        for bad in [
            &[("map", "2,3")][..],
            &[("size", "10"), ("map", "2")],
            &[("size", "10"), ("map", "x,3")],
            &[("size", "-1"), ("map", "0,0")],
            &[("size", "10"), ("numbytes", "3"), ("offset", "2")],
            &[("major", "2"), ("realsize", "10")],
        ] {
            assert!(pairs(bad).is_err(), "{bad:?}");
        }
        let none: &mut &[u8] = &mut &b""[..];
        for bad in ["2,9", "5,1,2,1", "0,3,2,1", "18446744073709551615,2"] {
            assert!(pairs(&[("size", "10"), ("map", bad)]).unwrap().parts(none).is_err(), "{bad}");
        }
        let huge = format!("{}\n", u64::MAX);
        for bad in [huge.as_str(), "300000\n", "x\n", "", &"1".repeat(2000)] {
            let mut content = bad.as_bytes().to_vec();
            content.resize(content.len().next_multiple_of(512) + 512, b'1');
            let mut new = pairs(&[("major", "1"), ("realsize", "10")]).unwrap();
            assert!(new.parts(&mut &content[..]).is_err(), "{bad:?}");
        }
    }
}
