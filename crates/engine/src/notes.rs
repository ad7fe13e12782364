//! Events of containers, with Docker's attribute names.

use shoal_model::spec::StringMap;

use crate::attacher::Attachment;
use crate::container::Container;
use crate::engine::Engine;

impl Engine {
    /// Records an event of a container: its labels, image and name, and `more`.
    pub(crate) fn note(&self, container: &Container, action: &str, more: &[(&str, String)]) {
        let mut attributes = container.read(|record| {
            let mut map = record.config.labels.clone().unwrap_or_default();
            map.insert("image".into(), record.image.clone());
            map.insert("name".into(), record.name.clone());
            map
        });
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.inner.events.emit("container", action, container.id.as_str(), attributes);
    }

    /// Records that a container joined or left its networks.
    pub(crate) fn note_networks(
        &self,
        container: &Container,
        action: &str,
        attachment: &Attachment,
    ) {
        for endpoint in &attachment.endpoints {
            let attributes = StringMap::from([
                ("container".to_owned(), container.id.to_string()),
                ("name".to_owned(), endpoint.network_name.clone()),
                ("type".to_owned(), endpoint.driver.clone()),
            ]);
            self.inner.events.emit("network", action, endpoint.network_id.as_str(), attributes);
        }
    }

    /// Records `create`, `destroy`, `mount` or `unmount` of a volume.
    pub(crate) fn note_volume(&self, name: &str, action: &str, more: &[(&str, String)]) {
        let mut attributes = StringMap::from([("driver".to_owned(), "local".to_owned())]);
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.inner.events.emit("volume", action, name, attributes);
    }

    /// Records that a container began or ceased to use its volumes.
    pub(crate) fn note_volume_use(&self, container: &Container, action: &str) {
        for mount in container.read(|record| record.mounts.clone()) {
            let Some(name) = mount.volume() else { continue };
            let mut more = vec![("container", container.id.to_string())];
            if action == "mount" {
                more.push(("destination", mount.target.clone()));
                more.push(("propagation", String::new()));
                more.push(("read/write", (!mount.read_only).to_string()));
            }
            self.note_volume(name, action, &more);
        }
    }

    /// Records `pull`, `push`, `tag`, `untag`, `delete`, `load`, `import` or `save` of an image.
    pub fn note_image(&self, action: &str, id: &str, name: &str) {
        let attributes = StringMap::from([("name".to_owned(), name.to_owned())]);
        self.inner.events.emit("image", action, id, attributes);
    }
}
