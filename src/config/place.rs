//! Where datagrams come in.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A place to listen at; in a file `unix:PATH`, `udp:ADDRESS:PORT` or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ListenAt {
    /// Nowhere.
    #[default]
    Nowhere,
    /// A Unix datagram socket that is made at this path.
    Unix(PathBuf),
    /// A UDP port.
    Udp(SocketAddr),
}

impl TryFrom<String> for ListenAt {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no place to listen at: unix:PATH, udp:ADDRESS:PORT with numbers, or empty");
        match text.split_once(':') {
            None if text.is_empty() => Ok(Self::Nowhere),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("udp", address)) => address.parse().map(Self::Udp).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

impl From<ListenAt> for String {
    fn from(place: ListenAt) -> Self {
        match place {
            ListenAt::Nowhere => Self::new(),
            ListenAt::Unix(path) => format!("unix:{}", path.display()),
            ListenAt::Udp(address) => format!("udp:{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back_as_they_were_written() {
        for text in ["", "unix:runs/person.sock", "udp:127.0.0.1:7000", "udp:[::1]:7000"] {
            assert_eq!(String::from(ListenAt::try_from(text.to_owned()).unwrap()), text);
        }
        for text in ["unix:", "udp:localhost:7000", "udp:127.0.0.1", "tcp:127.0.0.1:1", "person.sock"] {
            let refused = ListenAt::try_from(text.to_owned()).unwrap_err();
            assert!(refused.contains(text) && refused.contains("udp:ADDRESS:PORT"), "{refused}");
        }
    }
}
