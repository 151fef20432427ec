"""What can go wrong and how it must end, for every registry: the rows and columns of the table of faults.

A row's id names the fault wherever it is spoken of; letters tell the kind: T transport, A authentication, P processes,
D disks and sources, S servers, H archives and names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain


@dataclass(frozen=True)
class Column:
    """A registry, or a storage of the model store.

    :param code: its files, or its package, below ``core``.
    :param providers: its entries in ``tests/conformance/registries.py``, the plainest first; those of systems that
        begin with their name count, too.
    :param tests: the tests of its own, below ``tests``.
    """

    title: str
    code: tuple[str, ...]
    providers: tuple[str, ...]
    tests: tuple[str, ...]


def _system(title: str, name: str, provider: str | None = None) -> Column:
    return Column(title, (f"registries/{name}",), (provider or name,), (f"core/registries/{name}/",))


_STORE = "core/registries/modelstore/"
_EVERY_STORE = (f"{_STORE}test_claims.py", f"{_STORE}test_machine.py")
_EVERY_BUCKET = (*_EVERY_STORE, "stores/")
COLUMNS = {
    "directory": Column(
        "Directory",
        ("registries/modelstore/directory.py",),
        ("modelstore",),
        (f"{_STORE}test_registry.py", *_EVERY_STORE),
    ),
    "bucket": Column(
        "S3",
        ("registries/modelstore/buckets.py", "storages/s3.py", "storages/boto.py"),
        ("modelstore-moto", "modelstore-rgw"),
        (f"{_STORE}test_s3", *_EVERY_BUCKET),
    ),
    "gcs": Column(
        "GCS",
        ("registries/modelstore/buckets.py", "storages/gcs.py"),
        ("modelstore-gcs",),
        ("core/storages/test_gcs", *_EVERY_BUCKET),
    ),
    "azure": Column(
        "Azure",
        ("registries/modelstore/buckets.py", "storages/azure.py"),
        ("modelstore-azurite",),
        ("core/storages/test_azure", *_EVERY_BUCKET),
    ),
    "bentocloud": _system("BentoCloud", "bentocloud", "bentocloud-parts"),
    "wallaroo": _system("Wallaroo", "wallaroo"),
    "supervisely": _system("Supervisely", "supervisely"),
    "mlflow": _system("MLflow", "mlflow"),
    "oci": _system("OCI", "oci"),
    "huggingface": _system("Hugging Face", "huggingface"),
    "pieces": _system("Pieces", "pieces"),
}
# The registry that the documents show how to write.
EXAMPLES = {"shelf", "shelf-read-only"}


@dataclass(frozen=True)
class Part:
    """What several registries do by the same code.

    :param used_with: groups of words; a registry uses the part when its code imports one of each, or it can do it.
    :param otherwise: why a fault of the part cannot happen where it is not used.
    """

    title: str
    otherwise: str
    used_with: tuple[frozenset[str], ...] = ()


def _any(*words: str) -> frozenset[str]:
    return frozenset(words)


PARTS = {
    "calls": Part("Calls of an API", "it has no API that we call", (_any("ApiClient"),)),
    "storage": Part("Calls of an object storage", "it keeps nothing in an object storage", (_any("boto3"),)),
    "rest": Part(
        "Calls of a storage by the mover of bytes",
        "no calls of a storage go by the mover of bytes",
        (_any("RestBucket"),),
    ),
    "sends": Part(
        "Bytes on their way up",
        "no bytes go up over a network",
        (_any("PutArchive", "PutParts", "PostForm", "PutObjects", "PutFiles", "PutBlobs"),),
    ),
    "fetches": Part("Bytes on their way down", "no bytes come down over a network", (_any("GetArchive", "GetFiles"),)),
    "parts": Part("Uploads in parts", "nothing goes up in parts", (_any("PutParts", "PutObjects", "PutBlobs"),)),
    "archives": Part("Archives that come down", "files come one by one, in no archive", (_any("GetArchive"),)),
    "source": Part("Reading a source", "nothing is pushed to it", (_any("PUSH"),)),
    "target": Part("Writing a target", "nothing is pulled to a worker", (_any("PULL"),)),
    "remote": Part("What runs elsewhere", "nothing of ours runs there", (_any("DEPLOY"),)),
    "socket": Part("The socket of progress", "it has no socket", (_any("websockets"),)),
    "tasks": Part("Tasks and triggers", ""),
}


@dataclass(frozen=True)
class Row:
    """A fault.

    :param promise: what happens instead of harm.
    :param about: the parts that it can hit.
    :param each: whether each registry needs a test of its own.
    :param but: registries that it cannot hit although they use the part, and why.
    """

    id: str
    fault: str
    promise: str
    about: tuple[str, ...]
    each: bool = False
    but: Mapping[str, str] = field(default_factory=dict)
    section: str = ""


_BYTES = ("sends", "fetches")
_NETWORK = ("calls", "storage", "rest", *_BYTES)

_TRANSPORT = [
    Row(
        "T1",
        "The connection breaks while something is sent.",
        "That part or file is sent again, and nothing else.",
        ("sends",),
    ),
    Row(
        "T2",
        "The connection breaks while something is received.",
        "What is missing is asked for, of the same object.",
        ("fetches",),
    ),
    Row(
        "T3",
        "A burst of 500, 502, 503 or 504.",
        "Up to five attempts; what may have been done is looked for first.",
        _NETWORK,
    ),
    Row("T4", "A server says how long to wait.", "It is given at least that long.", _NETWORK),
    Row(
        "T5",
        "A wait that is a date, is past, makes no sense, or is far too long.",
        "Dates are read by the server's clock; nonsense counts as none; what ends after our time ends the call.",
        _NETWORK,
    ),
    Row("T6", "A server takes a request and never answers.", "The call ends in its time and may be retried.", _NETWORK),
    Row(
        "T7",
        "An answer drips.",
        "A call ends in its time whatever drips, and bytes that crawl count as standing still.",
        _NETWORK,
    ),
    Row("T8", "A server stops reading.", "The standstill is noticed and the part sent again.", ("sends",)),
    Row("T9", "An answer is shorter than it says.", "It counts as broken off.", _NETWORK),
    Row(
        "T10",
        "An answer of no told length ends early.",
        "Size and digest tell; the bytes are asked for again.",
        ("fetches",),
    ),
    Row(
        "T11",
        "Bytes arrive that are not the model's.",
        "They are asked for once more; wrong twice is `DigestMismatch`, and the target stays.",
        ("fetches",),
        each=True,
    ),
    Row("T12", "A proxy or server compresses what is stored.", "Stored bytes are asked for as they are.", ("fetches",)),
    Row(
        "T13",
        "An answer of any kind is far larger than it can mean.",
        "Reading ends at a limit, unpacked size and number of values included, and long work leaves the event loop.",
        _NETWORK,
    ),
    Row("T14", "A refusal comes while bytes are still sent.", "The refusal is told, not the broken pipe.", ("sends",)),
    Row("T15", "A host has no address.", "Tried again, then told by the host's name alone.", _NETWORK),
    Row(
        "T16",
        "A certificate is unknown, wrong or over, or there is none.",
        "Refused at once with what to set; verification is never dropped.",
        _NETWORK,
    ),
    Row(
        "T17",
        "A CA, a client certificate or a proxy of one's own.",
        "Calls, bytes and sockets use all of them alike.",
        (*_NETWORK, "socket"),
    ),
    Row(
        "T18",
        "Odd proxies and CAs in the environment.",
        "The connection's own win; what cannot be used is named by its variable; no `.netrc` is read.",
        _NETWORK,
    ),
    Row(
        "T19",
        "A redirect leads to another server.",
        "No credential goes along, and nothing leaves encryption.",
        _NETWORK,
    ),
    Row(
        "T20",
        "Redirects without end, or to places within.",
        "They end after five; metadata services and private addresses are refused.",
        _NETWORK,
    ),
    Row("T21", "An upload is redirected.", "The whole body is sent again.", ("calls", "sends")),
]
_AUTHENTICATION = [
    Row(
        "A1",
        "Credentials are refused.",
        "One renewal where there is one, then `Unauthorized`; a wrong password is not tried on and on.",
        ("calls", "storage", "rest"),
        but={"pieces": "it has no credentials"},
    ),
    Row(
        "A2",
        "A token ends in the middle of a transfer.",
        "Renewed once for all threads where it can be; what is done stays done.",
        ("calls", "storage", "rest"),
        but={"pieces": "it has no credentials"},
    ),
    Row(
        "A3",
        "Something is forbidden.",
        "`Unauthorized` with what was to be done, and no token.",
        ("calls", "storage", "rest"),
        but={"pieces": "it has no credentials"},
    ),
    Row(
        "A4",
        "A presigned address has expired.",
        "A new one is asked for and the part sent again, for as many times as any part.",
        _BYTES,
        but={
            "gcs": "its bytes go with a token, under no presigned address",
            "wallaroo": "it hands out no presigned addresses",
            "supervisely": "it hands out no presigned addresses",
            "oci": "an address of a blob is asked for by each request anew",
        },
    ),
    Row(
        "A5",
        "A credential could go along with a presigned address.",
        "It never does.",
        _BYTES,
        each=True,
        but={
            "azure": "its bytes go with a signature or token of its own, to the storage alone",
            "gcs": "its bytes go with a token, under no presigned address",
            "wallaroo": "it hands out no presigned addresses",
            "supervisely": "it hands out no presigned addresses",
        },
    ),
    Row(
        "A6",
        "A server hands out an address that it must not.",
        "Refused, unless it is the connection's own or listed.",
        _BYTES,
        but={
            "gcs": "we make the addresses ourselves, of the connection's endpoint",
            "wallaroo": "it hands out no addresses for bytes",
            "supervisely": "it hands out no addresses for bytes",
            "bucket": "we sign the addresses ourselves, for the connection's endpoint",
        },
    ),
    Row(
        "A7",
        "A clock is wrong.",
        "The storage's word for it is told; our waits do not ask the clock of the day.",
        _BYTES,
        but={
            "gcs": "its bytes go with a token, signed for no time",
            "wallaroo": "nothing there is signed for a time",
            "supervisely": "nothing there is signed for a time",
            "oci": "nothing there is signed for a time by us",
            "huggingface": "nothing there is signed for a time by us",
        },
    ),
    Row(
        "A8",
        "A secret could be in a text or an address that is shown.",
        "It is masked in every form, and addresses are shown without their query.",
        ("calls", "storage", "rest"),
        each=True,
        but={"pieces": "it has no credentials"},
    ),
]
_PROCESSES = [
    Row(
        "P1",
        "A push is killed at any moment.",
        "No half version is seen, and the next try ends with one whole version.",
        ("source",),
        each=True,
    ),
    Row(
        "P2",
        "A pull is killed at any moment.",
        "The target is absent, old or new; the next try ends right.",
        ("target",),
        each=True,
    ),
    Row(
        "P3",
        "A push is killed, or an answer lost, between the bytes' end and the publication.",
        "The next try finds the bytes and only publishes.",
        ("source",),
        each=True,
    ),
    Row(
        "P4",
        "A task is ended while it waits for a network.",
        "It ends within four seconds and leaves nothing of what it began that nobody wants.",
        ("calls", "storage", "rest"),
        each=True,
    ),
    Row("P5", "`on_kill` comes twice, before the work or after it.", "Nothing happens.", ("tasks",)),
    Row("P6", "`execution_timeout` ends a task.", "What it holds is cleaned up as after any error.", ("tasks",)),
    Row(
        "P7",
        "The triggerer restarts while a task is deferred.",
        "The trigger made anew only looks; nothing is begun twice.",
        ("tasks",),
    ),
    Row("P8", "A trigger's event comes twice, or late.", "The task asks the registry, not the event.", ("tasks",)),
    Row(
        "P9",
        "Somebody ends a deferred task.",
        "What it started elsewhere is taken back; a triggerer that stops takes nothing back.",
        ("remote",),
        but={},
    ),
    Row(
        "P10",
        "A wait outlives its time.",
        "The trigger's own deadline ends it, and what was started is taken back.",
        ("tasks",),
    ),
    Row(
        "P11",
        "A trigger's event makes no sense, or the trigger itself fails.",
        "The task says so and may be retried.",
        ("tasks",),
    ),
    Row("P12", "A connection is looked up in the triggerer.", "Without blocking the event loop.", ("tasks",)),
    Row(
        "P13",
        "A task is started a second time while the first goes on, and one of them fails.",
        "What either reported as success stays, with its digest.",
        ("source",),
        each=True,
    ),
    Row(
        "P14",
        "A result is larger than XCom should hold.",
        "At most 4 KiB: metadata is left out first; predictions go to files.",
        ("tasks",),
    ),
]
_DISKS = [
    Row(
        "D1",
        "The disk is full.",
        "Told with what is needed and free, before bytes move where the size is known; nothing is left.",
        ("target",),
    ),
    Row("D2", "The target may not be written.", "Refused before bytes move.", ("target",)),
    Row(
        "D3",
        "The source changes while it is pushed, its times unchanged or not.",
        "`SourceChanged`, and nothing is published.",
        ("source",),
        each=True,
    ),
    Row(
        "D4",
        "The source holds links, devices or what may not be read.",
        "Refused by name before anything is sent; no link is followed out of the source.",
        ("source",),
        each=True,
    ),
    Row(
        "D5",
        "Two pull the same model into one place.",
        "The place holds one whole model; no staging is shared.",
        ("target",),
    ),
    Row(
        "D6",
        "Two push the same version at once.",
        "The same bytes: both succeed. Other bytes: one does, the other hears of it.",
        ("source",),
        each=True,
    ),
    Row("D7", "Cleaning up fails, too.", "The first error is told, the second logged.", ("source", "target")),
    Row(
        "D8",
        "A model is empty, or just as large as some parts.",
        "Empty is refused; parts are cut to the byte and grow when there would be too many.",
        ("source",),
    ),
]
_SERVERS = [
    Row("S1", "A version is never ready.", "The wait ends in its time and tells the last state.", ("tasks",)),
    Row("S2", "A version fails.", "The wait ends at once with the server's reason.", ("tasks",)),
    Row(
        "S3",
        "A state goes back, or flaps.",
        "Only what is ready counts, and one fault in the middle ends no wait.",
        ("tasks",),
    ),
    Row(
        "S4",
        "Success is answered, and an error is inside.",
        "The body is read and counts.",
        ("storage", "parts"),
        but={
            "bentocloud": "its own API puts the parts together, and tells errors by its status",
            "mlflow": "its own API puts the parts together, and tells errors by its status",
            "huggingface": "its own API puts the parts together, and tells errors by its status",
        },
    ),
    Row(
        "S5",
        "The answer to the last request of an upload is lost.",
        "What is there is looked at; nothing is made twice.",
        ("source",),
        each=True,
        but={"directory": "nothing is asked of anybody: the disk answers"},
    ),
    Row(
        "S6",
        "A part cannot be sent.",
        "The upload is never put together; it is left to the next try, or given up when there is none.",
        ("parts",),
    ),
    Row(
        "S7",
        "An answer is no JSON, or of another shape.",
        "An error of ours that says what is wrong; what is more than expected is passed over.",
        ("calls", "storage", "rest"),
    ),
    Row(
        "S8",
        "A state that nobody has heard of.",
        "Not finished: it is waited on and logged.",
        ("calls",),
        each=True,
        but={
            "oci": "a manifest is there or not; it has no states",
            "huggingface": "a commit is there or not; it has no states",
        },
    ),
    Row("S9", "`latest` moves between the look and the transfer.", "It is resolved once.", ("target",)),
    Row(
        "S10",
        "The version exists with other bytes.",
        "`VersionConflict` that names both digests.",
        ("source",),
        each=True,
        but={
            "wallaroo": "each push is a version of its own",
            "mlflow": "each push is a version of its own",
        },
    ),
    Row(
        "S11",
        "Pages go round, repeat themselves or never end.",
        "An error, within limits.",
        ("calls", "storage", "rest"),
        but={
            "supervisely": "its listings come in one answer",
            "wallaroo": "its listings come in one answer",
            "pieces": "its listings come in one answer",
        },
    ),
    Row(
        "S12", "A socket drops, falls silent, or sends junk.", "It is replaced, and records are looked at.", ("socket",)
    ),
    Row(
        "S13",
        "What is to be deleted or ended is gone.",
        "That is a success.",
        ("calls", "storage", "rest"),
        each=True,
        but={
            "huggingface": "nothing is deleted there",
        },
    ),
]
_IN_ARCHIVES = "Refused with nothing left."
_NAMED = ("archives", "target")
_NAMES = [
    Row("H1", "A name leads elsewhere.", _IN_ARCHIVES, _NAMED),
    Row("H2", "A link.", _IN_ARCHIVES, ("archives",)),
    Row("H3", "A device or an unknown kind of member.", _IN_ARCHIVES, ("archives",)),
    Row("H4", "Odd owners, times and modes.", "None of them is taken over; only the right to execute is.", _NAMED),
    Row(
        "H5",
        "False sizes, bombs, too many members, names without end.",
        "Refused within limits of bytes, members and time, and at what the record says.",
        _NAMED,
    ),
    Row("H6", "Names that meet: twice, in other letters, a file and a directory.", _IN_ARCHIVES, _NAMED),
    Row("H7", "Names that deceive or that no disk holds.", "Refused, the name escaped.", _NAMED),
    Row("H8", "A cut archive, a wrong checksum, data behind the end.", "`CorruptArchive`.", ("archives",)),
    Row(
        "H9", "Something else instead of an archive.", "`CorruptArchive` that says what it looked like.", ("archives",)
    ),
    Row("H10", "Unusual and harmless names and forms.", "Taken.", _NAMED),
    Row(
        "H11",
        "Names of models and versions that a system cannot have.",
        "Refused before anything is sent.",
        ("tasks",),
        each=True,
    ),
    Row(
        "H12",
        "A source with names that could not come back.",
        "Refused at the push, by the rules of the pull.",
        ("source",),
    ),
]

ROWS = {
    row.id: Row(row.id, row.fault, row.promise, row.about, row.each, row.but, section)
    for section, row in chain(
        (("Transport", row) for row in _TRANSPORT),
        (("Authentication", row) for row in _AUTHENTICATION),
        (("Processes and Airflow", row) for row in _PROCESSES),
        (("Disks and sources", row) for row in _DISKS),
        (("Servers", row) for row in _SERVERS),
        (("Archives and names", row) for row in _NAMES),
    )
}
