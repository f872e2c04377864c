//! Fields read out of one slice. A step in the buffer of a connection for each field of a million parts
//! takes as long as what is in them.

use prost::encoding::decode_varint;

/// The content of the length-delimited field whose length stands at the beginning, and the bytes that
/// both take together. `None` if it does not lie here whole, or is damaged: prost, given the same, copes
/// with the one and words the other.
pub(crate) fn delimited(chunk: &[u8]) -> Option<(&[u8], usize)> {
    let mut rest = chunk;
    let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
    let content = rest.get(..length)?;
    Some((content, chunk.len() - rest.len() + length))
}
