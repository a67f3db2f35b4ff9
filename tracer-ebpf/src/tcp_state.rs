//! TCP states by the kernel's numbers.

/// A TCP state (`include/net/tcp_states.h`; the numbers are part of the kernel's user API).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the states are those of RFC 9293, by the kernel's names")]
pub enum TcpState {
    Established = 1,
    SynSent = 2,
    SynRecv = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    TimeWait = 6,
    Close = 7,
    CloseWait = 8,
    LastAck = 9,
    Listen = 10,
    Closing = 11,
    NewSynRecv = 12,
    /// Bound but neither connected nor listening: a pseudo-state of sock_diag since 6.8.
    BoundInactive = 13,
}

impl TcpState {
    /// The state with this number. `None` for 0 and for a number that the kernel did not use when
    /// this was written.
    #[must_use]
    pub const fn from_u8(state: u8) -> Option<Self> {
        Some(match state {
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynRecv,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            12 => Self::NewSynRecv,
            13 => Self::BoundInactive,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_states_correspond() {
        for number in 0..=u8::MAX {
            match TcpState::from_u8(number) {
                Some(state) => assert_eq!(state as u8, number),
                None => assert!(!(1..=13).contains(&number)),
            }
        }
    }
}
