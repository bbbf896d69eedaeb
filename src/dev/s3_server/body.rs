//! The body of a PUT, read and verified before anything is touched: s3s-fs moves the file into place first and
//! compares checksums afterwards, so a damaged upload would replace a good object.
//! Called by `layer` for every PUT that is not multipart.

use bytes::Bytes;
use futures::StreamExt;
use s3s::checksum::ChecksumHasher;
use s3s::dto::{Checksum, PutObjectInput, StreamingBlob};
use s3s::{S3Result, TrailingHeaders, s3_error};

/// Larger bodies are not held in memory: they stream into s3s-fs as they come.
const HELD_BYTES_MAX: i64 = 64 << 20;

/// Reads the body of `input` and puts it back as one that can't fail, with its checksums taken from the trailers too.
pub async fn hold(input: &mut PutObjectInput, trailers: Option<&TrailingHeaders>) -> S3Result<()> {
    if input.content_length.is_some_and(|announced| announced > HELD_BYTES_MAX) {
        return Ok(());
    }
    let Some(mut body) = input.body.take() else { return Err(s3_error!(IncompleteBody)) };
    let mut hasher = ChecksumHasher {
        crc32: Some(Default::default()),
        crc32c: Some(Default::default()),
        crc64nvme: Some(Default::default()),
        sha1: input.checksum_sha1.is_some().then(Default::default),
        sha256: input.checksum_sha256.is_some().then(Default::default),
    };
    let mut held: Vec<Bytes> = Vec::new();
    let mut held_bytes = 0;
    while let Some(bytes) = body.next().await {
        let bytes =
            bytes.map_err(|error| s3_error!(IncompleteBody, "the body broke off or does not match: {}", error))?;
        held_bytes += bytes.len() as i64;
        if held_bytes > HELD_BYTES_MAX {
            return Err(s3_error!(EntityTooLarge));
        }
        hasher.update(&bytes);
        held.push(bytes);
    }
    compare(&expected(input, trailers), &hasher.finalize())?;
    let frames = held.into_iter().map(Ok::<Bytes, std::io::Error>);
    input.body = Some(StreamingBlob::wrap(futures::stream::iter(frames)));
    Ok(())
}

fn expected(input: &PutObjectInput, trailers: Option<&TrailingHeaders>) -> Checksum {
    let trailer = |name: &str| {
        let value = |headers: &http::HeaderMap| headers.get(name)?.to_str().ok().map(str::to_owned);
        trailers.and_then(|trailers| trailers.read(value).flatten())
    };
    Checksum {
        checksum_crc32: input.checksum_crc32.clone().or_else(|| trailer("x-amz-checksum-crc32")),
        checksum_crc32c: input.checksum_crc32c.clone().or_else(|| trailer("x-amz-checksum-crc32c")),
        checksum_crc64nvme: input.checksum_crc64nvme.clone().or_else(|| trailer("x-amz-checksum-crc64nvme")),
        checksum_sha1: input.checksum_sha1.clone(),
        checksum_sha256: input.checksum_sha256.clone(),
        ..Checksum::default()
    }
}

fn compare(expected: &Checksum, got: &Checksum) -> S3Result<()> {
    let pairs = [
        ("crc32", &expected.checksum_crc32, &got.checksum_crc32),
        ("crc32c", &expected.checksum_crc32c, &got.checksum_crc32c),
        ("crc64nvme", &expected.checksum_crc64nvme, &got.checksum_crc64nvme),
        ("sha1", &expected.checksum_sha1, &got.checksum_sha1),
        ("sha256", &expected.checksum_sha256, &got.checksum_sha256),
    ];
    for (name, expected, got) in pairs {
        if expected.is_some() && expected != got {
            return Err(s3_error!(BadDigest, "the body does not match its {}", name));
        }
    }
    Ok(())
}
