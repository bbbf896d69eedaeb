//! Every problem that Forebay answers with (RFC 9457): one stable `type` each. Servers send them, clients match on them.
//!
//! A type is never renamed and never reused. `proxy/respond` maps outcomes to these; documentation and metrics list
//! [`Problem::ALL`].

use http::StatusCode;

/// The prefix of every type.
pub const TYPE_PREFIX: &str = "urn:forebay:problem:";

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident = $status:ident, $slug:literal, $title:literal;)*) => {
        /// What is wrong, for machines.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Problem { $($(#[$doc])* $name,)* }

        impl Problem {
            /// All of them, in order of their numbers.
            pub const ALL: &[Problem] = &[$(Problem::$name,)*];

            /// The end of its type: `urn:forebay:problem:<slug>`.
            #[must_use]
            pub const fn slug(self) -> &'static str {
                match self { $(Problem::$name => $slug,)* }
            }

            /// For people; the same for each occurrence.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Problem::$name => $title,)* }
            }

            /// The status it is sent with.
            #[must_use]
            pub const fn status(self) -> StatusCode {
                match self { $(Problem::$name => StatusCode::$status,)* }
            }
        }
    };
}

problems! {
    /// The path is none of Forebay's.
    NoSuchPath = NOT_FOUND, "no-such-path", "There is nothing at this path";
    /// The path exists, the method does not.
    MethodNotAllowed = METHOD_NOT_ALLOWED, "method-not-allowed", "This path does not take this method";
    /// The key is empty, too long, badly percent-encoded or no UTF-8; or the path has a query.
    BadKey = BAD_REQUEST, "bad-key", "The key is not valid";
    /// A condition that Forebay does not know.
    BadCondition = BAD_REQUEST, "bad-condition", "The precondition is not valid";
    /// `Content-Digest` can't be read.
    BadDigest = BAD_REQUEST, "bad-digest", "The Content-Digest is not valid";
    /// `Forebay-Durability` is unknown or not on offer.
    BadDurability = BAD_REQUEST, "bad-durability", "The durability asked for is not on offer";
    /// The body is not what `Content-Digest` says.
    DigestMismatch = BAD_REQUEST, "digest-mismatch", "The body does not match its digest";
    /// The body ended early.
    BodyIncomplete = BAD_REQUEST, "body-incomplete", "The body is shorter than its Content-Length";
    /// A body without a length.
    LengthRequired = LENGTH_REQUIRED, "length-required", "The request needs a Content-Length";
    /// Larger than the volume's blocks.
    BlockTooLarge = PAYLOAD_TOO_LARGE, "block-too-large", "The block is larger than the volume allows";
    /// The range is not inside the block, or not a range.
    BadRange = RANGE_NOT_SATISFIABLE, "bad-range", "The range is not satisfiable";
    /// No token, or one that is not accepted.
    Unauthorized = UNAUTHORIZED, "unauthorized", "A valid token is required";
    /// A valid token that does not open this.
    Forbidden = FORBIDDEN, "forbidden", "The token does not allow this";
    /// The volume takes no writes.
    VolumeReadOnly = FORBIDDEN, "volume-read-only", "This volume is read-only";
    /// No such volume here.
    UnknownVolume = NOT_FOUND, "unknown-volume", "This node does not serve the volume";
    /// No such block.
    NoSuchBlock = NOT_FOUND, "no-such-block", "There is no block with this key";
    /// Other bytes have the key.
    KeyExists = CONFLICT, "key-exists", "The key holds other bytes and the volume is immutable";
    /// A purge of a block that the origin does not have yet.
    BlockDirty = CONFLICT, "block-dirty", "The block is not in the object store yet";
    /// The client's condition does not hold.
    PreconditionFailed = PRECONDITION_FAILED, "precondition-failed", "The precondition does not hold";
    /// An acknowledged block rotted before it was flushed.
    BlockLost = INTERNAL_SERVER_ERROR, "block-lost", "The block was damaged before it reached the object store";
    /// After a disaster, until the origin was asked.
    BlockUnsettled = SERVICE_UNAVAILABLE, "block-unsettled", "The block came back from a damaged disk and is being checked against the object store";
    /// Bodies of puts take all the memory they may.
    PutsFull = SERVICE_UNAVAILABLE, "puts-full", "Too many bodies are on their way in";
    /// The dirty budget is full.
    DirtyFull = SERVICE_UNAVAILABLE, "dirty-full", "Too much waits to be flushed";
    /// The disk holds as many pinned bytes as it may.
    PinsFull = INSUFFICIENT_STORAGE, "pins-full", "Too much is pinned";
    /// No region can be freed.
    DiskFull = SERVICE_UNAVAILABLE, "disk-full", "The disk has no free region";
    /// The fill budget is full.
    FillsFull = SERVICE_UNAVAILABLE, "fills-full", "Too many blocks are on their way from the object store";
    /// The device failed.
    DiskFault = SERVICE_UNAVAILABLE, "disk-fault", "The disk failed";
    /// A queue inside the node is full.
    QueueFull = SERVICE_UNAVAILABLE, "queue-full", "The node is overloaded";
    /// The node is stopping.
    Stopping = SERVICE_UNAVAILABLE, "stopping", "The node is stopping";
    /// The member that may hold the block as nobody else does can't be asked.
    OwnerUnreachable = SERVICE_UNAVAILABLE, "owner-unreachable", "The member that holds the block can't be reached";
    /// The node refuses what belongs to another member of its group.
    NotOwner = MISDIRECTED_REQUEST, "not-owner", "Another member of the group has this block";
    /// Not ready to serve.
    NotReady = SERVICE_UNAVAILABLE, "not-ready", "The node is not ready";
    /// The object store can't be reached.
    OriginUnreachable = BAD_GATEWAY, "origin-unreachable", "The object store can't be reached";
    /// The object store took too long.
    OriginTimeout = GATEWAY_TIMEOUT, "origin-timeout", "The object store did not answer in time";
    /// The object store answered 5xx or 429.
    OriginUnavailable = BAD_GATEWAY, "origin-unavailable", "The object store is unavailable";
    /// The object store refused our credentials.
    OriginDenied = BAD_GATEWAY, "origin-denied", "The object store refused the node's credentials";
    /// The bucket does not exist.
    OriginNoBucket = BAD_GATEWAY, "origin-no-bucket", "The bucket does not exist";
    /// The object store's bytes are not the block's.
    OriginCorrupt = BAD_GATEWAY, "origin-corrupt", "The object store's bytes do not match their digest";
    /// An S3 object larger than the volume's blocks.
    OriginTooLarge = BAD_GATEWAY, "origin-too-large", "What the object store holds is larger than a block";
    /// The queue to the object store is full.
    OriginBusy = SERVICE_UNAVAILABLE, "origin-busy", "Too many requests wait for the object store";
    /// The object store answered something else.
    OriginProtocol = BAD_GATEWAY, "origin-protocol", "The object store's answer makes no sense";
    /// A request that two servers could read differently, or that is no HTTP.
    BadFraming = BAD_REQUEST, "bad-framing", "The request is malformed";
    /// More head than `limits.header_bytes` or `limits.header_count`.
    HeadTooLarge = REQUEST_HEADER_FIELDS_TOO_LARGE, "head-too-large", "The request's head is too large";
    /// The head did not arrive within `limits.header_timeout`.
    RequestTimeout = REQUEST_TIMEOUT, "request-timeout", "The request's head did not arrive in time";
    /// The admin: the body is no JSON of the right shape, or a field can't stand.
    BadBody = BAD_REQUEST, "bad-body", "The request's body is not valid";
    /// The admin: a parameter of the query is unknown or not valid.
    BadQuery = BAD_REQUEST, "bad-query", "The request's query is not valid";
    /// The admin: no such store, volume, group, member, attachment, key or token.
    NoSuchRecord = NOT_FOUND, "no-such-record", "There is no such record";
    /// The admin: the name is taken by a record that says something else.
    RecordExists = CONFLICT, "record-exists", "Another record has this name";
    /// The admin: something else must be done first.
    RuleRefused = CONFLICT, "rule-refused", "A rule speaks against this change";
    /// The admin: a change of a record without `If-Match`.
    PreconditionRequired = PRECONDITION_REQUIRED, "precondition-required", "The request needs If-Match";
    /// The admin: a body larger than any record.
    BodyTooLarge = PAYLOAD_TOO_LARGE, "body-too-large", "The request's body is too large";
    /// The admin: its database can't be read or written.
    MetadataUnavailable = SERVICE_UNAVAILABLE, "metadata-unavailable", "The metadata can't be read or written";
    /// A bug of ours, or a disk that fails reads.
    Internal = INTERNAL_SERVER_ERROR, "internal", "The node failed";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_unique_and_statuses_are_errors() {
        let mut slugs: Vec<_> = Problem::ALL.iter().map(|problem| problem.slug()).collect();
        slugs.sort_unstable();
        slugs.dedup();
        assert_eq!(slugs.len(), Problem::ALL.len());
        for (number, problem) in Problem::ALL.iter().enumerate() {
            let status = problem.status();
            assert!(status.is_client_error() || status.is_server_error(), "{problem:?}");
            assert_eq!(*problem as usize, number);
        }
    }
}
