//! The configuration's stores and volumes as the origin pool is told about them. Called by `boot`.
//!
//! The configuration does not know the pool's types, nor the pool the configuration's: this file is where they meet.

use super::known::KnownVolume;
use crate::config::checked::Config;
use crate::config::stores::{Addressing, Credentials, Naming, StoreConfig, Volume};
use crate::origin::{
    AddressStyle, CredentialSource, Keys, NameStyle, OriginPool, StartError, StoreSettings, VolumeSettings,
};
use crate::resource::KeyNames;

/// Starts the pool that serves the configuration's stores. Connects to nothing yet.
///
/// # Errors
/// [`StartError`]: a store's endpoint, credentials or certificate authority can't be used.
pub fn start_pool(config: &Config) -> Result<OriginPool, StartError> {
    if config.admin.is_some() {
        // `following` fills it.
        return OriginPool::start(Vec::new(), &[], config.limits.origin_threads);
    }
    let stores = config.stores.iter().map(|store| store_settings(config, store)).collect();
    let volumes: Vec<_> = config.volumes.iter().map(|volume| volume_settings(config, volume)).collect();
    OriginPool::start(stores, &volumes, config.limits.origin_threads)
}

/// A volume that an admin told of, and its store, as the pool is told.
pub fn known_volume(config: &Config, name: &str, known: &KnownVolume) -> (VolumeSettings, StoreSettings) {
    let store = &known.store.store;
    let credentials = CredentialSource::referred(known.store.credentials.as_deref());
    let settings = StoreSettings::new(&store.name, &store.endpoint, &store.region, &store.bucket, credentials);
    let settings = StoreSettings {
        style: if store.path_style { AddressStyle::Path } else { AddressStyle::VirtualHost },
        names: match store.names {
            KeyNames::Plain => NameStyle::Plain,
            KeyNames::Portable => NameStyle::Portable,
        },
        ca: config.admin.as_ref().and_then(|admin| admin.store_ca.clone()),
        ..bounded(config, settings)
    };
    let volume = VolumeSettings {
        name: name.into(),
        store: settings.name.clone(),
        prefix: known.prefix.clone(),
        block_bytes_max: known.block_bytes_max,
    };
    (volume, settings)
}

fn store_settings(config: &Config, store: &StoreConfig) -> StoreSettings {
    let credentials = credentials(&store.credentials);
    let settings = StoreSettings::new(&store.name, store.endpoint.as_str(), &store.region, &store.bucket, credentials);
    StoreSettings {
        style: match store.addressing {
            Addressing::Path => AddressStyle::Path,
            Addressing::Host => AddressStyle::VirtualHost,
        },
        names: match store.naming {
            Naming::Plain => NameStyle::Plain,
            Naming::Portable => NameStyle::Portable,
        },
        ca: store.ca.clone(),
        ..bounded(config, settings)
    }
}

/// With the configuration's bounds.
fn bounded(config: &Config, settings: StoreSettings) -> StoreSettings {
    let limits = &config.limits;
    StoreSettings {
        concurrency: limits.origin_concurrency,
        queue_depth: limits.origin_queue,
        connect_timeout: limits.origin_connect_timeout,
        read_timeout: limits.origin_read_timeout,
        deadline: limits.origin_deadline,
        ..settings
    }
}

fn volume_settings(config: &Config, volume: &Volume) -> VolumeSettings {
    VolumeSettings {
        name: volume.shard.name.clone(),
        store: config.stores[volume.store_index].name.clone(),
        prefix: volume.prefix.to_string(),
        block_bytes_max: volume.shard.block_bytes_max,
    }
}

fn credentials(credentials: &Credentials) -> CredentialSource {
    match credentials {
        Credentials::Usual => CredentialSource::Usual,
        Credentials::Environment => CredentialSource::Environment,
        Credentials::Profile { file, profile } => {
            CredentialSource::File { path: file.clone(), profile: Some(profile.clone()) }
        }
        Credentials::Keys { access_key, secret_key, session_token } => CredentialSource::Keys(Keys {
            access_key: access_key.clone(),
            secret_key: secret_key.clone(),
            session_token: session_token.clone(),
        }),
    }
}
