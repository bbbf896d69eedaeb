//! The schema, as numbered steps: SQLite's `user_version` says how many of them a file has seen.
//!
//! Called when a database is opened or restored. A step that was released is never changed; each runs in a transaction of its own
//! with its new number, so that a crash leaves the step before it.

use rusqlite::{Connection, TransactionBehavior};

use super::super::registry::RegistryError;

/// `FBAD`: says that a file is ours before anything else of it is believed.
const APPLICATION_ID: i32 = 0x4642_4144;

const STEPS: [&str; 4] = [
    // 1: everything.
    "
    CREATE TABLE meta (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        revision INTEGER NOT NULL
    ) STRICT;
    INSERT INTO meta (only, revision) VALUES (1, 0);

    CREATE TABLE stores (
        name TEXT PRIMARY KEY,
        body TEXT NOT NULL,
        revision INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE volumes (
        name TEXT PRIMARY KEY,
        store TEXT NOT NULL REFERENCES stores (name),
        prefix TEXT NOT NULL,
        home_group TEXT,
        body TEXT NOT NULL,
        revision INTEGER NOT NULL,
        routing INTEGER NOT NULL DEFAULT 0,
        UNIQUE (store, prefix),
        FOREIGN KEY (name, home_group) REFERENCES attachments (volume, member_group) DEFERRABLE INITIALLY DEFERRED
    ) STRICT;

    CREATE TABLE groups (
        name TEXT PRIMARY KEY,
        body TEXT NOT NULL,
        revision INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE members (
        member_group TEXT NOT NULL REFERENCES groups (name),
        name TEXT NOT NULL,
        id TEXT NOT NULL UNIQUE,
        address TEXT NOT NULL,
        body TEXT NOT NULL,
        revision INTEGER NOT NULL,
        PRIMARY KEY (member_group, name),
        UNIQUE (member_group, address)
    ) STRICT;

    CREATE TABLE attachments (
        volume TEXT NOT NULL REFERENCES volumes (name),
        member_group TEXT NOT NULL REFERENCES groups (name),
        body TEXT NOT NULL,
        revision INTEGER NOT NULL,
        PRIMARY KEY (volume, member_group)
    ) STRICT;
    CREATE INDEX attachments_of_group ON attachments (member_group);

    CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        body TEXT NOT NULL,
        revision INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE tokens (
        id TEXT PRIMARY KEY,
        expires_at INTEGER NOT NULL,
        body TEXT NOT NULL,
        revision INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX tokens_by_end ON tokens (expires_at);

    CREATE TABLE audit (
        revision INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        subject TEXT NOT NULL,
        token TEXT NOT NULL,
        action TEXT NOT NULL,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        became TEXT
    ) STRICT;
    ",
    // 2: when a volume was made, so that a token of one that was deleted does not open another of its name.
    "
    ALTER TABLE volumes ADD COLUMN made INTEGER NOT NULL DEFAULT 0;
    UPDATE volumes SET made = coalesce(
        (SELECT max(revision) FROM audit WHERE kind = 'volume' AND action = 'create' AND audit.name = volumes.name), 0
    );
    ",
    // 3: what a group's members are told has a revision too; and when a group was made, as for volumes.
    "
    ALTER TABLE groups ADD COLUMN routing INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE groups ADD COLUMN made INTEGER NOT NULL DEFAULT 0;
    UPDATE groups SET routing = (SELECT revision FROM meta), made = coalesce(
        (SELECT max(revision) FROM audit WHERE kind = 'group' AND action = 'create' AND audit.name = groups.name), 0
    );
    ",
    // 4: whose a group's keys were, and since when each member holds nothing of others'. Of members from before nothing is known.
    "
    ALTER TABLE groups ADD COLUMN placements TEXT NOT NULL DEFAULT '[]';
    ALTER TABLE members ADD COLUMN settled INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE members ADD COLUMN followed INTEGER;
    ALTER TABLE members ADD COLUMN moved INTEGER;
    ALTER TABLE members ADD COLUMN reported_at INTEGER;
    UPDATE meta SET revision = revision + 1 WHERE EXISTS (SELECT 1 FROM groups);
    UPDATE volumes SET routing = (SELECT revision FROM meta);
    UPDATE groups SET routing = (SELECT revision FROM meta), placements = json_array(json_object(
        'revision', (SELECT revision FROM meta),
        'members', (SELECT json_group_array(json_object('id', id, 'weight', json_extract(body, '$.weight'))) FROM (
            SELECT id, body FROM members
            WHERE member_group = groups.name AND json_extract(body, '$.state') = 'up' ORDER BY id
        ))
    ));
    ",
];

/// Brings a database up to this version.
///
/// # Errors
/// It is another program's, or of a later version, or SQLite fails.
pub fn run(connection: &mut Connection) -> Result<(), RegistryError> {
    let refused = |words: String| Err(RegistryError::Refused(words));
    let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let seen: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if id != APPLICATION_ID {
        let tables: u32 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if id != 0 || tables > 0 {
            return refused("the file is no database of a Forebay admin: name another".to_owned());
        }
        connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    if seen > STEPS.len() {
        return refused(format!(
            "the database is of a later version (schema {seen}, this version knows {}): run that version",
            STEPS.len()
        ));
    }
    for (number, step) in STEPS.iter().enumerate().skip(seen) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have been here first.
        let now: usize = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if now != number {
            continue;
        }
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", number + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_the_first_step_learns_when_its_volumes_were_made() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(STEPS[0]).unwrap();
        connection.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        let rows = "
            INSERT INTO stores VALUES ('main', '{}', 1);
            INSERT INTO volumes (name, store, prefix, body, revision) VALUES ('told', 'main', 'a/', '{}', 9);
            INSERT INTO volumes (name, store, prefix, body, revision) VALUES ('forgotten', 'main', 'b/', '{}', 9);
            INSERT INTO audit VALUES (2, 0, '', '', 'create', 'volume', 'told', NULL);
            INSERT INTO audit VALUES (4, 0, '', '', 'create', 'volume', 'told', NULL);
            INSERT INTO audit VALUES (9, 0, '', '', 'update', 'volume', 'told', NULL);
            INSERT INTO groups VALUES ('near', '{}', 5);
            INSERT INTO members VALUES ('near', 'a', '0a', 'a:1', '{\"weight\":100,\"state\":\"up\"}', 6);
            INSERT INTO members VALUES ('near', 'b', '0b', 'b:1', '{\"weight\":100,\"state\":\"absent\"}', 6);
            INSERT INTO audit VALUES (5, 0, '', '', 'create', 'group', 'near', NULL);
            UPDATE meta SET revision = 9;
        ";
        connection.execute_batch(rows).unwrap();
        run(&mut connection).unwrap();
        let made = |name: &str| {
            connection
                .query_row("SELECT made FROM volumes WHERE name = ?1", [name], |row| row.get::<_, u64>(0))
                .unwrap()
        };
        assert_eq!((made("told"), made("forgotten")), (4, 0));
        let marks = "SELECT made, routing FROM groups WHERE name = 'near'";
        let marks = connection.query_row(marks, [], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?)));
        assert_eq!(marks.unwrap(), (5, 10));
        let placements = super::super::placing::placements(&connection, "near").unwrap();
        assert_eq!(placements.iter().map(|placement| placement.revision).collect::<Vec<_>>(), [10]);
        let members: Vec<_> = placements[0].members.iter().map(|member| (&*member.id, member.weight.get())).collect();
        assert_eq!(members, [("0a", 100)], "who is up");
        let standings = super::super::placing::standings(&connection, "near").unwrap();
        assert!(standings.len() == 2 && standings.iter().all(|standing| standing.moving), "nothing is known of them");
    }
}
