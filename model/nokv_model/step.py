"""One operation on its way: who runs it, at which version, and what all operations share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nokv.errors import ResultTooLarge
from nokv.types.events import EventKind
from nokv.types.limits import NESTED_VIEWS_MAX
from nokv.types.locks import LockKind
from nokv.types.reads import Event
from nokv.types.values import ROOT_VIEW, Caller, FileType
from nokv_model import acls
from nokv_model.access import SETGID, SETUID, Resolver, in_group, is_root, require_depth
from nokv_model.body import EMPTY, Content
from nokv_model.sessions import Session
from nokv_model.state import State
from nokv_model.tree import Forest, Inode, Key, file_type


@dataclass
class Step:
    """The context of one operation. It changes `state`, which the caller restores on an error."""

    state: State
    wall_ns: int
    cluster_ns: int
    caller: Caller
    session: Session | None
    seq: int
    version: int
    events: list[Event] = field(default_factory=list)
    places: set[Key] = field(default_factory=set)
    """Directories below which something changes; none may lie too deep."""

    @property
    def forest(self) -> Forest:
        """The namespace at present."""
        return self.state.forest

    @property
    def session_number(self) -> int:
        """The session's id; 0 for the node itself."""
        return self.session.number if self.session else 0

    @property
    def resolver(self) -> Resolver:
        """Resolves addresses as this command does."""
        return Resolver(self.forest, self.caller, self.session_number)

    def touch(self, inode: Inode, *, modified: bool = False) -> None:
        """Set ctime, and mtime where the content changed; the record is this version's now."""
        inode.ctime_ns = self.wall_ns
        if modified:
            inode.mtime_ns = self.wall_ns
        inode.version = self.version

    def make(
        self, mode: int, parent: Inode | None, view: int | None = None, umask: int = 0
    ) -> Inode:
        """Make an inode of the caller's; a set-gid directory passes its group on.

        It lies in the parent's view, or in the one that is named. Access lists are passed on too.
        """
        gid = self.caller.gid
        directory = file_type(mode) == FileType.DIRECTORY
        if parent is not None and parent.mode & SETGID:
            gid = parent.gid
            if directory:
                mode |= SETGID
        foreign = not is_root(self.caller) and not in_group(self.caller, gid)
        if not directory and foreign and mode & 0o010:
            mode &= ~SETGID
        if view is None:
            view = parent.view if parent is not None else ROOT_VIEW
        inode = Inode(
            view=view,
            number=self.state.next_inode,
            mode=mode,
            uid=self.caller.uid,
            gid=gid,
            atime_ns=self.wall_ns,
            mtime_ns=self.wall_ns,
            ctime_ns=self.wall_ns,
            version=self.version,
        )
        self.state.next_inode += 1
        self.forest.inodes[inode.key] = inode
        self.pass_lists_on(inode, parent, umask)
        return inode

    def pass_lists_on(self, inode: Inode, parent: Inode | None, umask: int = 0) -> None:
        """Give a new inode what its directory's default list says, or apply the umask."""
        default = parent.default_list if parent is not None else None
        if default is None or inode.is_symlink:
            inode.mode &= ~umask
            return
        made = acls.of_new(default, inode.mode)
        inode.mode = inode.mode & ~0o777 | acls.mode_bits(made)
        inode.access_list = None if acls.is_minimal(made) else made
        inode.default_list = default if inode.is_directory else None

    def attach(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """Give the inode a name; the directory is modified."""
        self.forest.attach(parent, name, inode)
        self.places.add(parent.key)
        self.touch(parent, modified=True)

    def remove(self, parent: Inode, name: bytes) -> None:
        """Take a name away; with its last name an inode goes, and all below it.

        Raises ResultTooLarge for too many views below it.
        """
        entry = self.forest.inodes[parent.entries[name]]
        self.require_few_views(entry)
        self.let_go(self.detach(parent, name))

    def detach(self, parent: Inode, name: bytes) -> Inode:
        """Take a name away; the directory is modified. What it named is the caller's."""
        inode = self.forest.detach(parent, name)
        self.places.add(parent.key)
        self.touch(parent, modified=True)
        return inode

    def let_go(self, inode: Inode) -> None:
        """Do what follows when a name of the inode has gone."""
        if inode.names:
            self.touch(inode)
        else:
            self.drop(inode)

    def require_few_views(self, inode: Inode) -> None:
        """Raise ResultTooLarge if too many views are below an inode that ends."""
        if inode.is_directory and len(self.forest.views_below(inode)) - 1 > NESTED_VIEWS_MAX:
            message = "too many views below the directory"
            raise ResultTooLarge(message)

    def drop(self, inode: Inode) -> None:
        """Let an inode without names go, and all below it; views end whose roots go."""
        gone, loosened = self.forest.drop(inode)
        for one in gone:
            self.set_content(one, EMPTY, body=0)
            for kind in LockKind:
                self.state.locks.pop((*one.key, kind), None)
        self.state.loosened |= loosened
        for view in self.state.live_views():
            if self.state.root_of(view.number) not in self.forest.inodes:
                self.state.views[view.number] = replace(view, dead=self.version)
                for entry in [entry for entry in self.state.trash if entry[0] == view.number]:
                    del self.state.trash[entry]
                for key in [key for key in self.forest.staged if key[0] == view.number]:
                    self.drop(self.forest.inodes[key])

    def set_content(self, inode: Inode, content: Content, *, body: int) -> None:
        """Give the inode a content under a body id; the old body, if another, has ended."""
        if inode.body not in {0, body}:
            self.state.show((inode.view, inode.body), self.version, self.cluster_ns, EMPTY)
        inode.content, inode.body = content, body
        self.state.show((inode.view, body), self.version, self.cluster_ns, content)

    def resized(self, inode: Inode) -> None:
        """Note that the usage of every directory that names the inode changes."""
        self.places |= {directory for directory, _ in inode.names}

    def check_depth(self) -> None:
        """Raise NameTooLong if something changed too deep below its tree's root."""
        for key in self.places & set(self.forest.inodes):
            require_depth(self.forest, self.forest.inodes[key])

    def new_body(self) -> int:
        """Return a fresh body id."""
        body = self.state.next_body
        self.state.next_body += 1
        return body

    def clear_privileges(self, inode: Inode) -> None:
        """Clear set-uid, and set-gid where the group may execute (a caller changed the file)."""
        inode.mode &= ~SETUID
        if inode.mode & 0o010:
            inode.mode &= ~SETGID

    def event(
        self,
        kind: EventKind,
        inode: Inode,
        place: tuple[Inode, bytes],
        to: tuple[Inode, bytes] | None = None,
        names: tuple[bytes, ...] = (),
        generation: int | None = None,
        to_name: bytes = b"",
    ) -> None:
        """Record what happened, unless it happened inside a staged tree or in a trash."""
        parent, name = place
        self.places.add(parent.key)
        if not self.forest.is_shown(parent):
            return
        self.events.append(
            Event(
                version=self.version,
                kind=kind,
                view=parent.view,
                chain=self.forest.told_chain(parent),
                name=name,
                inode=inode.number,
                to_chain=self.forest.told_chain(to[0]) if to else (),
                to_name=to[1] if to else to_name,
                size=inode.size,
                generation=inode.generation if generation is None else generation,
                session=self.session_number,
                seq=self.seq,
                names=names,
                wall_ns=self.wall_ns,
                inode_view=inode.view,
            )
        )

    def event_of(self, kind: EventKind, inode: Inode) -> None:
        """Record a change of an inode itself: its place is a directory that names it.

        The root of a view and staged roots are their own places.
        """
        parent = self.forest.parent(inode)
        if parent is None or parent[0] != inode.view:
            parent = inode.key
        self.event(kind, inode, (self.forest.inodes[parent], b""))
