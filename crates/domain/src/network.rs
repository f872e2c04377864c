//! Networks that a credential may be used from.

use std::{fmt, net::IpAddr, str::FromStr};

/// Networks that one credential may have.
pub const MAX_NETWORKS: usize = 64;

/// All addresses that begin with the same bits, written `192.0.2.0/24` or `2001:db8::/32`. A single
/// address is a network of its own.
///
/// IPv4 addresses are the same whether they are written as such or mapped into IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    first: IpAddr,
    prefix: u8,
}

/// Why a text is not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// It is something else.
    #[error("must be an address or a network such as 192.0.2.0/24 or 2001:db8::/32")]
    Malformed,
    /// The address has bits that the prefix leaves out, so that nobody knows which was meant.
    #[error("has bits beyond its prefix; the network is {0}")]
    HostBits(Network),
}

impl Network {
    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && masked(address, self.prefix) == self.first
    }
}

/// The address with all bits behind the first `prefix` cleared.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

impl FromStr for Network {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let written: IpAddr = address.parse().map_err(|_| ParseError::Malformed)?;
        let bits = if written.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            // No sign, no zero in front: what others might read differently is refused.
            Some(digits) if digits.len() > 1 && digits.starts_with(['0', '+']) => {
                return Err(ParseError::Malformed);
            }
            Some(digits) => digits.parse().map_err(|_| ParseError::Malformed)?,
        };
        if prefix > bits {
            return Err(ParseError::Malformed);
        }
        let (address, prefix) = match (written, written.to_canonical()) {
            // The first 96 bits of a mapped address say only that it is one.
            (IpAddr::V6(_), mapped @ IpAddr::V4(_)) if prefix >= 96 => (mapped, prefix - 96),
            _ => (written, prefix),
        };
        let network = Self {
            first: masked(address, prefix),
            prefix,
        };
        match network.first == address {
            true => Ok(network),
            false => Err(ParseError::HostBits(network)),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.first, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    fn contains(text: &str, address: &str) -> bool {
        network(text).contains(address.parse().unwrap())
    }

    #[test]
    fn a_network_holds_the_addresses_that_begin_like_it() {
        for (text, inside, outside) in [
            ("192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("0.0.0.0/0", "255.1.2.3", "::1"),
            ("128.0.0.0/1", "255.255.255.255", "127.255.255.255"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::/0", "2001:db8::1", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1", "2001:db8::2"),
        ] {
            assert!(contains(text, inside), "{text} {inside}");
            assert!(!contains(text, outside), "{text} {outside}");
        }
    }

    #[test]
    fn an_ipv4_address_is_the_same_when_mapped_into_ipv6() {
        assert!(contains("192.0.2.0/24", "::ffff:192.0.2.9"));
        assert!(contains("::ffff:192.0.2.0/120", "192.0.2.9"));
        assert!(contains("::ffff:192.0.2.9", "192.0.2.9"));
        assert_eq!(network("::ffff:10.0.0.0/104"), network("10.0.0.0/8"));
        // A wider network of IPv6 does not let all of IPv4 in by the back door.
        assert!(!contains("::/16", "192.0.2.9"));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "",
            "example.org",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "10.0.0/8",
            "10.0.0.0/8/8",
            " 10.0.0.0/8",
            "fe80::1%eth0",
        ] {
            assert_eq!(
                text.parse::<Network>(),
                Err(ParseError::Malformed),
                "{text}"
            );
        }
        let meant = network("10.0.0.0/8");
        let refused = "10.1.2.3/8".parse::<Network>();
        assert_eq!(refused, Err(ParseError::HostBits(meant)));
    }

    proptest! {
        #[test]
        fn a_network_is_read_as_it_is_written(bits: u128, prefix in 0..=128_u8) {
            let first = masked(IpAddr::V6(bits.into()), prefix);
            let text = format!("{first}/{prefix}");
            let network: Network = text.parse().unwrap();
            prop_assert_eq!(network.to_string().parse::<Network>(), Ok(network));
            prop_assert!(network.contains(first) || first.to_canonical().is_ipv4());
        }
    }
}
