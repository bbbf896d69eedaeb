//! What s3s-fs lacks, as a layer over s3s's `S3` trait: any key (see `names`), atomic conditional PUT by a lock per
//! key, If-Match and If-None-Match on GET and HEAD, the region's name checked, absent buckets reported.
//!
//! Invariant: between the condition of a PUT and its effect nothing else happens to that key.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;

use s3s::auth::Credentials;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::body;
use super::list;
use super::names::Names;
use super::sessions::Sessions;

/// Locks, shared by keys whose hashes meet.
const LOCK_COUNT: usize = 256;

/// The layer over one s3s-fs root.
pub struct Layer {
    fs: FileSystem,
    root: PathBuf,
    region: String,
    names: Names,
    sessions: Sessions,
    hashing: RandomState,
    locks: Vec<RwLock<()>>,
}

impl Layer {
    /// A layer that answers for `region` and finds the buckets in `root`.
    pub fn new(fs: FileSystem, root: PathBuf, region: &str, names: Names, sessions: Sessions) -> Layer {
        let locks = (0..LOCK_COUNT).map(|_| RwLock::new(())).collect();
        Layer { fs, root, region: region.to_owned(), names, sessions, hashing: RandomState::new(), locks }
    }

    /// What every request must pass: the right region, an existing bucket.
    fn admit<T>(&self, request: &S3Request<T>, bucket: &str) -> S3Result<()> {
        if let Some(region) = request.region.as_ref().filter(|region| region.as_str() != self.region) {
            let mut error = s3_error!(
                AuthorizationQueryParametersError,
                "Error parsing the X-Amz-Credential parameter; the region '{}' is wrong; expecting '{}'",
                region.as_str(),
                self.region
            );
            let mut headers = http::HeaderMap::new();
            if let Ok(region) = self.region.parse() {
                headers.insert("x-amz-bucket-region", region);
            }
            error.set_headers(headers);
            return Err(error);
        }
        if self.root.join(bucket).is_dir() { Ok(()) } else { Err(s3_error!(NoSuchBucket)) }
    }

    fn lock(&self, bucket: &str, key: &str) -> &RwLock<()> {
        let hash = self.hashing.hash_one((bucket, key));
        &self.locks[usize::try_from(hash % LOCK_COUNT as u64).expect("a remainder of 256 is small")]
    }

    async fn reading(&self, bucket: &str, key: &str) -> RwLockReadGuard<'_, ()> {
        self.lock(bucket, key).read().await
    }

    async fn writing(&self, bucket: &str, key: &str) -> RwLockWriteGuard<'_, ()> {
        self.lock(bucket, key).write().await
    }

    /// The name to write `key` under.
    fn name_to_write(&self, key: &str) -> S3Result<String> {
        let name = self.names.name(key);
        self.names.remember(key, &name).map_err(s3s::S3Error::internal_error)?;
        Ok(name)
    }

    async fn head_of(&self, bucket: &str, name: &str) -> S3Result<HeadObjectOutput> {
        let input = HeadObjectInput { bucket: bucket.to_owned(), key: name.to_owned(), ..HeadObjectInput::default() };
        Ok(self.fs.head_object(inner_request(input)).await?.output)
    }

    /// As S3 does it: who may not list all of the bucket gets 403 for an object that is not there.
    async fn conceal(&self, who: Option<&Credentials>, bucket: &str, name: &str) -> S3Result<()> {
        if who.is_some_and(|who| !self.sessions.may_list(&who.access_key, bucket)) {
            self.head_of(bucket, name).await.map_err(|_| s3_error!(AccessDenied))?;
        }
        Ok(())
    }

    fn list(&self, bucket: &str, query: &list::Query<'_>) -> S3Result<list::Listing> {
        let keys = list::keys(&self.root.join(bucket), &self.names).map_err(s3s::S3Error::internal_error)?;
        Ok(list::select(&keys, query))
    }

    async fn objects(&self, bucket: &str, keys: &[String], text: Text) -> S3Result<Vec<Object>> {
        let mut objects = Vec::with_capacity(keys.len());
        for key in keys {
            // Deleted since the listing: then it is not there.
            let Ok(head) = self.head_of(bucket, &self.names.name(key)).await else { continue };
            let object = Object {
                key: Some(text.write(key.clone())),
                size: head.content_length,
                e_tag: head.e_tag,
                last_modified: head.last_modified,
                ..Object::default()
            };
            objects.push(object);
        }
        Ok(objects)
    }
}

/// 412 or 304 if the ETag of what is there fails a condition of a GET or HEAD.
fn check_conditions(etag: Option<&ETag>, if_match: Option<&IfMatch>, if_none_match: Option<&IfNoneMatch>) -> S3Result {
    let same = |condition: &ETagCondition, etag: &ETag| match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(wanted) => wanted.weak_cmp(etag),
    };
    let Some(etag) = etag else { return Ok(()) };
    if if_match.is_some_and(|condition| !same(condition, etag)) {
        return Err(s3_error!(PreconditionFailed));
    }
    if if_none_match.is_some_and(|condition| same(condition, etag)) {
        return Err(s3_error!(NotModified));
    }
    Ok(())
}

/// A request of the layer's own to s3s-fs.
fn inner_request<T>(input: T) -> S3Request<T> {
    S3Request {
        input,
        method: http::Method::HEAD,
        uri: http::Uri::from_static("/"),
        headers: http::HeaderMap::new(),
        extensions: http::Extensions::new(),
        credentials: None,
        region: None,
        service: None,
        trailing_headers: None,
    }
}

#[async_trait::async_trait]
impl S3 for Layer {
    async fn get_object(&self, mut req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.admit(&req, &req.input.bucket)?;
        let _lock = self.reading(&req.input.bucket, &req.input.key).await;
        req.input.key = self.names.name(&req.input.key);
        self.conceal(req.credentials.as_ref(), &req.input.bucket, &req.input.key).await?;
        if req.input.if_match.is_some() || req.input.if_none_match.is_some() {
            let head = self.head_of(&req.input.bucket, &req.input.key).await?;
            check_conditions(head.e_tag.as_ref(), req.input.if_match.as_ref(), req.input.if_none_match.as_ref())?;
        }
        self.fs.get_object(req).await
    }

    async fn head_object(&self, mut req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.admit(&req, &req.input.bucket)?;
        let _lock = self.reading(&req.input.bucket, &req.input.key).await;
        req.input.key = self.names.name(&req.input.key);
        self.conceal(req.credentials.as_ref(), &req.input.bucket, &req.input.key).await?;
        let (if_match, if_none_match) = (req.input.if_match.clone(), req.input.if_none_match.clone());
        let head = self.fs.head_object(req).await?;
        check_conditions(head.output.e_tag.as_ref(), if_match.as_ref(), if_none_match.as_ref())?;
        Ok(head)
    }

    async fn put_object(&self, mut req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        self.admit(&req, &req.input.bucket)?;
        body::hold(&mut req.input, req.trailing_headers.as_ref()).await?;
        let _lock = self.writing(&req.input.bucket, &req.input.key).await;
        req.input.key = self.name_to_write(&req.input.key)?;
        self.fs.put_object(req).await
    }

    async fn delete_object(&self, mut req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.admit(&req, &req.input.bucket)?;
        let _lock = self.writing(&req.input.bucket, &req.input.key).await;
        req.input.key = self.names.name(&req.input.key);
        self.fs.delete_object(req).await
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        self.admit(&req, &req.input.bucket)?;
        let mut deleted = Vec::new();
        for object in &req.input.delete.objects {
            let _lock = self.writing(&req.input.bucket, &object.key).await;
            let input = DeleteObjectInput {
                bucket: req.input.bucket.clone(),
                key: self.names.name(&object.key),
                ..DeleteObjectInput::default()
            };
            self.fs.delete_object(inner_request(input)).await?;
            let entry = DeletedObject { key: Some(object.key.clone()), ..DeletedObject::default() };
            deleted.push(entry);
        }
        Ok(S3Response::new(DeleteObjectsOutput { deleted: Some(deleted), ..DeleteObjectsOutput::default() }))
    }

    async fn copy_object(&self, mut req: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        self.admit(&req, &req.input.bucket)?;
        let _lock = self.writing(&req.input.bucket, &req.input.key).await;
        req.input.key = self.name_to_write(&req.input.key)?;
        if let CopySource::Bucket { key, .. } = &mut req.input.copy_source {
            *key = self.names.name(key).into();
        }
        self.fs.copy_object(req).await
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.admit(&req, &req.input.bucket)?;
        let input = req.input;
        let text = Text::of(input.encoding_type.as_ref());
        let resumed = input.continuation_token.as_deref().map(list::decode);
        let query = list::Query {
            prefix: input.prefix.as_deref().unwrap_or(""),
            delimiter: input.delimiter.as_deref(),
            after: resumed.as_deref().or(input.start_after.as_deref()).unwrap_or(""),
            count_max: usize::try_from(input.max_keys.unwrap_or(1000)).unwrap_or(0).min(1000),
        };
        let listing = self.list(&input.bucket, &query)?;
        let count = listing.keys.len() + listing.common_prefixes.len();
        let output = ListObjectsV2Output {
            contents: Some(self.objects(&input.bucket, &listing.keys, text).await?),
            common_prefixes: Some(prefixes(listing.common_prefixes, text)),
            key_count: i32::try_from(count).ok(),
            is_truncated: Some(listing.next.is_some()),
            // A token stands in XML whatever the key holds.
            next_continuation_token: listing.next.map(|key| list::encode(&key)),
            continuation_token: input.continuation_token,
            start_after: input.start_after.map(|key| text.write(key)),
            max_keys: Some(input.max_keys.unwrap_or(1000)),
            prefix: input.prefix.map(|key| text.write(key)),
            delimiter: input.delimiter.map(|key| text.write(key)),
            encoding_type: input.encoding_type,
            name: Some(input.bucket),
            ..ListObjectsV2Output::default()
        };
        Ok(S3Response::new(output))
    }

    async fn list_objects(&self, req: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
        self.admit(&req, &req.input.bucket)?;
        let input = req.input;
        let text = Text::of(input.encoding_type.as_ref());
        let query = list::Query {
            prefix: input.prefix.as_deref().unwrap_or(""),
            delimiter: input.delimiter.as_deref(),
            after: input.marker.as_deref().unwrap_or(""),
            count_max: usize::try_from(input.max_keys.unwrap_or(1000)).unwrap_or(0).min(1000),
        };
        let listing = self.list(&input.bucket, &query)?;
        let output = ListObjectsOutput {
            contents: Some(self.objects(&input.bucket, &listing.keys, text).await?),
            common_prefixes: Some(prefixes(listing.common_prefixes, text)),
            is_truncated: Some(listing.next.is_some()),
            next_marker: listing.next.map(|key| text.write(key)),
            marker: input.marker.map(|key| text.write(key)),
            max_keys: Some(input.max_keys.unwrap_or(1000)),
            prefix: input.prefix.map(|key| text.write(key)),
            delimiter: input.delimiter.map(|key| text.write(key)),
            encoding_type: input.encoding_type,
            name: Some(input.bucket),
            ..ListObjectsOutput::default()
        };
        Ok(S3Response::new(output))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.admit(&req, &req.input.bucket)?;
        self.fs.head_bucket(req).await
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.admit(&req, &req.input.bucket)?;
        self.fs.get_bucket_location(req).await
    }

    async fn list_buckets(&self, req: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        self.fs.list_buckets(req).await
    }

    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        self.fs.create_bucket(req).await
    }

    async fn delete_bucket(&self, req: S3Request<DeleteBucketInput>) -> S3Result<S3Response<DeleteBucketOutput>> {
        self.admit(&req, &req.input.bucket)?;
        self.fs.delete_bucket(req).await
    }

    async fn create_multipart_upload(
        &self,
        mut req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.admit(&req, &req.input.bucket)?;
        let key = req.input.key.clone();
        req.input.key = self.name_to_write(&key)?;
        let created = self.fs.create_multipart_upload(req).await?;
        Ok(created.map_output(|mut output| {
            output.key = Some(key);
            output
        }))
    }

    async fn upload_part(&self, mut req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        self.admit(&req, &req.input.bucket)?;
        req.input.key = self.names.name(&req.input.key);
        self.fs.upload_part(req).await
    }

    async fn complete_multipart_upload(
        &self,
        mut req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.admit(&req, &req.input.bucket)?;
        let key = req.input.key.clone();
        let _lock = self.writing(&req.input.bucket, &key).await;
        req.input.key = self.name_to_write(&key)?;
        let completed = self.fs.complete_multipart_upload(req).await?;
        Ok(completed.map_output(|mut output| {
            output.key = Some(key);
            output
        }))
    }

    async fn abort_multipart_upload(
        &self,
        mut req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.admit(&req, &req.input.bucket)?;
        req.input.key = self.names.name(&req.input.key);
        self.fs.abort_multipart_upload(req).await
    }
}

fn prefixes(names: Vec<String>, text: Text) -> Vec<CommonPrefix> {
    names.into_iter().map(|name| CommonPrefix { prefix: Some(text.write(name)) }).collect()
}

/// How keys stand in a listing: `encoding-type=url` is what clients ask for that know that XML can't hold every key.
#[derive(Clone, Copy)]
enum Text {
    Plain,
    Url,
}

impl Text {
    fn of(encoding: Option<&EncodingType>) -> Text {
        if encoding.is_some_and(|encoding| encoding.as_str() == EncodingType::URL) { Text::Url } else { Text::Plain }
    }

    fn write(self, key: String) -> String {
        match self {
            Text::Plain => key,
            Text::Url => list::encode(&key),
        }
    }
}
