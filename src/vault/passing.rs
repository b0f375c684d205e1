//! A connection goes from one worker to another: it is in the vault of one of them at every moment.

use std::any::Any;

use super::Vault;
use crate::connection::Connection;
use crate::service::AnyService;
use crate::time::deadline::Moment;
use crate::vault::noted::Noted;
use crate::wire::record::Record;

impl Vault {
    /// It goes to another worker, and is not read before it is in that one's vault. Until what is answered is dropped it is
    /// there, as one to be dialled for; nothing is for one that is not here. `None`: there is no room for it on the way.
    pub(crate) fn moves(
        &mut self,
        key: usize,
        connection: &Connection,
        service: &AnyService,
        now: Moment,
    ) -> Option<Option<Box<dyn Any + Send>>> {
        let Some((id, _)) = self.arena.who(key) else {
            return Some(None);
        };
        let record = connection.export(service, now).map(|record| Record {
            far: None,
            dialing: true,
            ..record
        });
        let noted = record.map(|record| Noted::of(&connection.io, now, record));
        let noted = noted.and_then(|mut noted| {
            noted.arrival.along = 0;
            postcard::to_stdvec(&noted).ok()
        });
        let standing = noted.and_then(|noted| self.arena.moving.put(id, &noted));
        let standing = Box::new(standing?);
        self.forget(key);
        Some(Some(standing))
    }

    /// It has come of another worker, whose vault has it as long as `standing` lives.
    pub(crate) fn comes(&mut self, standing: Box<dyn Any + Send>) {
        self.coming.push(standing);
    }
}
