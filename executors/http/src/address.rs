//! Which addresses may be called: checked for literals when the connection is read, and for names each time one is
//! resolved for a new connection, so that a name that changes its mind gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address may not be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Link-local, metadata, multicast, broadcast, unspecified: never.
    Never,
    /// Private or loopback: only where the connection names it.
    Private,
}

/// A range of addresses that a connection names: `10.0.0.0/8`, `fd12::/16`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    base: u128,
    prefix: u8,
    v4: bool,
}

impl Network {
    /// Reads `address` or `address/prefix`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not an address or a range such as `10.0.0.0/8`");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let (base, width, v4) = bits(canonical(address));
        let prefix = prefix.unwrap_or(width);
        if prefix > width {
            return Err(wrong());
        }
        Ok(Self { base, prefix, v4 })
    }

    fn holds(&self, address: IpAddr) -> bool {
        let (value, width, v4) = bits(address);
        let host_bits = u32::from(width - self.prefix.min(width));
        v4 == self.v4 && value.checked_shr(host_bits).unwrap_or(0) == self.base.checked_shr(host_bits).unwrap_or(0)
    }
}

fn bits(address: IpAddr) -> (u128, u8, bool) {
    match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32, true),
        IpAddr::V6(v6) => (u128::from(v6), 128, false),
    }
}

/// The IPv4 address inside an IPv6 one, if it carries one: mapped, compatible, NAT64, 6to4. Otherwise the address.
fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let segments = v6.segments();
    let low = Ipv4Addr::from((u32::from(segments[6]) << 16) | u32::from(segments[7]));
    match segments {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => IpAddr::V4(low),
        [0, 0, 0, 0, 0, 0, a, b] if a != 0 || b > 1 => IpAddr::V4(low),
        [0x2002, a, b, ..] => IpAddr::V4(Ipv4Addr::from((u32::from(a) << 16) | u32::from(b))),
        _ => address,
    }
}

/// Whether the address may be called, given the ranges that the connection names.
pub(crate) fn check(address: IpAddr, named: &[Network]) -> Result<(), Refusal> {
    let address = canonical(address);
    let (never, private) = match address {
        IpAddr::V4(v4) => never_v4(v4),
        IpAddr::V6(v6) => never_v6(v6),
    };
    if never {
        return Err(Refusal::Never);
    }
    if private && !named.iter().any(|network| network.holds(address)) {
        return Err(Refusal::Private);
    }
    Ok(())
}

fn never_v4(v4: Ipv4Addr) -> (bool, bool) {
    let [a, b, c, d] = v4.octets();
    let metadata = [a, b, c, d] == [100, 100, 100, 200] || [a, b, c, d] == [192, 0, 0, 192];
    let never = v4.is_link_local() || v4.is_multicast() || v4.is_broadcast() || a == 0 || metadata;
    let shared = a == 100 && (64..128).contains(&b);
    let reserved = a >= 240 || (a == 192 && b == 0 && c == 0) || (a == 198 && (b == 18 || b == 19));
    (never, v4.is_private() || v4.is_loopback() || shared || reserved)
}

fn never_v6(v6: Ipv6Addr) -> (bool, bool) {
    let metadata = v6 == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    let never = v6.is_unicast_link_local() || v6.is_multicast() || v6.is_unspecified() || metadata;
    let site_local = v6.segments()[0] & 0xffc0 == 0xfec0;
    (never, v6.is_unique_local() || v6.is_loopback() || site_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> Option<Refusal> {
        check(text.parse().unwrap(), &[]).err()
    }

    #[test]
    fn metadata_and_link_local_are_never_called_in_any_dress() {
        for text in [
            "169.254.169.254",
            "169.254.0.1",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "fe80::1",
            "febf::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "::ffff:100.100.100.200",
            "0.0.0.0",
            "::",
            "255.255.255.255",
            "224.0.0.1",
            "ff02::1",
        ] {
            assert_eq!(refusal(text), Some(Refusal::Never), "{text}");
            let everything = [Network::parse("0.0.0.0/0").unwrap(), Network::parse("::/0").unwrap()];
            assert_eq!(check(text.parse().unwrap(), &everything), Err(Refusal::Never), "{text} even if named");
        }
    }

    #[test]
    fn private_ones_only_where_named() {
        for text in ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "::1", "fc00::1", "fec0::1"] {
            assert_eq!(refusal(text), Some(Refusal::Private), "{text}");
            assert_eq!(check(text.parse().unwrap(), &[Network::parse(text).unwrap()]), Ok(()), "{text} named");
        }
        let ten = [Network::parse("10.0.0.0/8").unwrap()];
        assert_eq!(check("::ffff:10.9.9.9".parse().unwrap(), &ten), Ok(()));
        assert_eq!(check("11.0.0.1".parse().unwrap(), &ten), Ok(()));
        assert_eq!(check("192.168.0.1".parse().unwrap(), &ten), Err(Refusal::Private));
        assert_eq!(refusal("8.8.8.8"), None);
        assert_eq!(refusal("2606:4700::1111"), None);
    }

    #[test]
    fn ranges_are_read_strictly() {
        assert!(Network::parse("10.0.0.0/33").is_err());
        assert!(Network::parse("ten").is_err());
        assert!(Network::parse("::/0").unwrap().holds("1::".parse().unwrap()));
    }
}
