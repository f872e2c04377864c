//! Sizes as people write them.

/// Bytes: a number with `KiB`, `MiB` or `GiB`, or 0.
pub(crate) fn bytes(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        "" if digits == "0" => Some(1),
        _ => None,
    };
    let number = digits.parse::<usize>().ok();
    let bytes = number
        .zip(unit)
        .and_then(|(number, unit)| number.checked_mul(unit));
    bytes.ok_or_else(|| "must be a whole number of KiB, MiB or GiB, such as 512MiB".to_owned())
}

/// Bytes of which half is enough for one upload of the largest batches.
pub(crate) fn enough_for_messages(text: &str) -> Result<usize, String> {
    match bytes(text)? {
        bytes @ 0x200_0000.. => Ok(bytes),
        _ => Err("must be 32MiB or more".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_needs_a_unit() {
        assert_eq!(bytes("512MiB"), Ok(512 << 20));
        assert_eq!(bytes("2GiB"), Ok(2 << 30));
        assert_eq!(bytes("0"), Ok(0));
        for refused in ["", "12", "1.5GiB", "2GB", "-1MiB", "GiB", "99999999999GiB"] {
            assert!(bytes(refused).is_err(), "{refused:?}");
        }
    }
}
