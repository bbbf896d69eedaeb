//! Session credentials: keys for a store that end soon and open nothing but one volume's prefix. The words of admin and client about them.
//!
//! Given by `admin/api/sessions` for a volume's token, held by `client/session` in memory. They are in no document that is kept or signed, routing least of all. Never
//! printed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::token::Right;

/// What a client is given.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
pub struct SessionCredentials {
    /// Names the session.
    pub access_key: String,
    /// A secret.
    pub secret_key: String,
    /// Goes with each request; a secret.
    pub session_token: String,
    /// When they end, in unix seconds.
    pub expires_at: u64,
    /// How many seconds that is from now.
    pub lasts_seconds: u64,
    /// Whether they write, too.
    pub right: Right,
}

impl fmt::Debug for SessionCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint: String = self.access_key.chars().take(4).collect();
        f.debug_struct("SessionCredentials")
            .field("access_key", &format!("{hint}…"))
            .field("expires_at", &self.expires_at)
            .field("right", &self.right)
            .finish_non_exhaustive()
    }
}
