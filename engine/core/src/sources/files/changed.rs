//! Whether files are still what they were when the workflow was compiled.

use datafusion::execution::runtime_env::RuntimeEnv;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use object_store::ObjectStoreExt;

use super::{CONCURRENCY, SourceFile};

/// Looks at every file again and says of the first that is not what it was.
pub async fn changed(files: &[SourceFile], runtime: &RuntimeEnv) -> Option<String> {
    let looks: Vec<BoxFuture<'_, Option<String>>> = files.iter().map(|file| change_of(file, runtime)).collect();
    let mut checks = futures::stream::iter(looks).buffered(CONCURRENCY);
    while let Some(check) = checks.next().await {
        if check.is_some() {
            return check;
        }
    }
    None
}

/// A tag without what stands around it: Azure's listings leave out the quotes that its headers have.
fn tag(text: Option<&str>) -> Option<&str> {
    text.map(|text| text.trim_start_matches("W/").trim_matches('"'))
}

fn change_of<'a>(file: &'a SourceFile, runtime: &'a RuntimeEnv) -> BoxFuture<'a, Option<String>> {
    async move {
        let store = runtime.object_store(&file.store).ok()?;
        match store.head(&file.meta.location).await {
            Ok(now) => {
                let same = now.size == file.meta.size
                    && now.last_modified == file.meta.last_modified
                    && tag(now.e_tag.as_deref()) == tag(file.meta.e_tag.as_deref());
                (!same).then(|| format!("`/{}` was changed while it was read", file.meta.location))
            }
            Err(error) => Some(format!("`/{}` cannot be looked at again: {error}", file.meta.location)),
        }
    }
    .boxed()
}
