//! What stands for the conversation of a takeover where there is none.

pub(crate) mod share {
    use crate::io::Io;

    /// Nothing is ever given.
    #[derive(Debug)]
    pub(crate) enum Giving {}

    impl Giving {
        pub(crate) fn arrived(&mut self, _: usize) {
            match *self {}
        }

        pub(crate) fn changed(&mut self, _: usize, _: &mut Io) -> bool {
            match *self {}
        }

        pub(crate) fn ended(&mut self, _: u64) {
            match *self {}
        }

        pub(crate) fn is_holding(&self) -> bool {
            match *self {}
        }

        pub(crate) fn is_pressing(&self) -> bool {
            match *self {}
        }
    }
}
