"""The check-up of a run before anything is held: every room's check in turn; one that fails does not hide the others.

Order: storage, versions, authentication and resources, which take seconds and whose errors are logged at once; then tables, prepared set and
model, memory and disk of training, which take as long as reading the data.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from medley.cluster.surroundings import Node, check_authentication, check_resources, check_storage, check_versions, cluster_nodes, num_places, this_machine
from medley.config import Run
from medley.data.findings import Finding
from medley.data.prepared import PreparedData
from medley.data.report_html import data_page
from medley.data.report_prepared import PreparedReport, report_prepared
from medley.data.report_samples import draw_samples
from medley.data.report_tables import TablesReport, report_tables
from medley.data.report_text import prepared_text, tables_text
from medley.manifest import exists, join_uri, list_folder, write_bytes
from medley.schema import InputError
from medley.storage import StorageError
from medley.training.assemble import check_model, learn_assets
from medley.training.config import GradientTrainConfig
from medley.training.memory_check import MemoryReport, Place, check_disk, check_memory, measured_peak
from medley.training.run import find_prepared, read_assets_of

logger = logging.getLogger(__name__)


@dataclass
class Checkup:
    """What the doctor knows about a run."""

    findings: list[Finding] = field(default_factory=list)
    tables: TablesReport | None = None
    prepared: PreparedReport | None = None
    memory: MemoryReport | None = None
    page: str | None = None
    """URI of the HTML page of the data"""

    @property
    def exit_code(self) -> int:
        """0 without errors; 2 where the configuration, the data or the place must be changed; 1 where a check itself failed."""
        errors = [finding for finding in self.findings if finding.level == "error"]
        return 0 if not errors else 1 if any(finding.is_failure for finding in errors) else 2

    def figures(self) -> dict[str, Any]:
        """Plain JSON values."""
        parts = {name: asdict(part) if part is not None else None for name, part in (("tables", self.tables), ("prepared", self.prepared))}
        return {
            "page": self.page,
            "num_errors": sum(finding.level == "error" for finding in self.findings),
            "num_warnings": sum(finding.level == "warning" for finding in self.findings),
            "findings": [asdict(finding) for finding in self.findings],
            **parts,
            "memory": self.memory.figures() if self.memory is not None else None,
        }

    def text(self) -> str:
        """What a person reads in a terminal."""
        lines: list[str] = []
        if self.tables is not None:
            lines += ["", *tables_text(self.tables)]
        if self.prepared is not None:
            lines += ["", *prepared_text(self.prepared)]
        if self.memory is not None:
            lines += ["", *self.memory.text()]
        order = ("ok", "warning", "error")
        lines += ["", *(str(finding) for finding in sorted(self.findings, key=lambda finding: order.index(finding.level)))]
        return "\n".join(lines + ([f"page    {self.page}"] if self.page else []))


def check(run: Run, address: str | None = None) -> Checkup:
    """Examine a run. address: of the cluster whose session this is called in; None: this machine, and no Ray is started.

    Mistakes become findings; nothing that the data, the storage or the machine hold is raised.
    """
    checkup = Checkup()
    _guarded(checkup, "storage", partial(check_storage, run.storage))
    _guarded(checkup, "versions", check_versions)
    _guarded(checkup, "authentication", partial(check_authentication, address))
    nodes: list[Node] = []
    _guarded(checkup, "resources", partial(_check_resources, run, address, nodes))
    data = _check_data(run, checkup)
    if data is not None:
        _guarded(checkup, "memory", partial(_check_memory, run, data, nodes, checkup))
    else:
        remedy = "correct the errors first" if checkup.prepared is not None else "run jobs.prepare, then this again"
        checkup.findings.append(Finding("warning", "memory and disk were not estimated: they follow from model and prepared data", remedy))
    return checkup


def _guarded(checkup: Checkup, name: str, examine: Callable[[], list[Finding]]) -> None:
    """Run one check; whatever it raises becomes a finding, so that the others still run."""
    try:
        found = examine()
    except InputError as error:
        found = [Finding.of_mistake(error)]
    except StorageError as error:
        found = [Finding("error", f"{error.got}; expected {error.expected}", error.remedy, is_failure=True)]
    except Exception as error:
        logger.debug("check of %s", name, exc_info=True)
        what = f"the check of {name} failed ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
        found = [Finding("error", what, "see what the message names; if it is a fault of ours, report it", is_failure=True)]
    for finding in found:
        if finding.level == "error":
            logger.error("%s | %s", name, str(finding).removeprefix("error").strip())
    checkup.findings += found


def _check_data(run: Run, checkup: Checkup) -> PreparedData | None:
    """The tables, the prepared set where there is one, and the page about both. Returns the set when a run could read it."""
    data: list[PreparedData] = []
    num_before = len(checkup.findings)
    _guarded(checkup, "tables", partial(_check_tables, run, checkup))
    has_tables = checkup.tables is not None and checkup.tables.is_readable
    if run.inputs.prepared or has_tables:
        _guarded(checkup, "prepared set", partial(_check_prepared, run, checkup, data, checkup.findings[num_before:]))
    if checkup.tables is not None or checkup.prepared is not None:
        _guarded(checkup, "page", partial(_write_page, run, checkup, data[0] if data else None, checkup.findings[num_before:]))
    is_faulty = any(finding.level == "error" for finding in checkup.findings[num_before:])
    return data[0] if data and not is_faulty else None


def _check_tables(run: Run, checkup: Checkup) -> list[Finding]:
    if not list_folder(run.tables_uri):
        if run.inputs.prepared:
            return []
        what = f"there are no tables in '{run.tables_uri}'"
        if run.convert is not None:
            return [Finding("warning", what, "jobs.pipeline converts them")]
        return [Finding("error", what, "run jobs.convert, or set inputs.tables to your folder")]
    wanted = {f"model.encoders.{name}": encoder.column for name, encoder in run.model.encoders.items()}
    checkup.tables, findings = report_tables(run.tables_uri, wanted)
    return findings


def _check_prepared(run: Run, checkup: Checkup, data: list[PreparedData], findings_of_tables: list[Finding]) -> list[Finding]:
    try:
        data.append(find_prepared(run))
    except InputError as error:
        if run.inputs.prepared or not error.got.startswith(f"'{run.prepared_root}'"):
            raise
        return [Finding("warning", error.got, error.remedy)]
    checkup.prepared, findings = report_prepared(data[0])
    if not any(finding.level == "error" for finding in findings_of_tables):  # else it would say the same again
        try:
            check_model(run.model, run.loss, data[0])
        except InputError as error:
            findings.append(Finding.of_mistake(error))
    return findings


def _write_page(run: Run, checkup: Checkup, data: PreparedData | None, findings: list[Finding]) -> list[Finding]:
    samples = draw_samples(data) if data is not None and checkup.prepared is not None else []
    uri = join_uri(run.storage, "report", "data.html")
    write_bytes(uri, data_page(run.name, findings, checkup.tables, checkup.prepared, samples).encode())
    checkup.page = uri
    return []


def _check_resources(run: Run, address: str | None, nodes: list[Node]) -> list[Finding]:
    nodes += cluster_nodes() if address is not None else this_machine()
    num_workers = run.train.min_workers if isinstance(run.train, GradientTrainConfig) else getattr(run.train, "workers", 1)
    findings = check_resources(nodes, num_workers, run.train.cpus_per_worker, getattr(run.train, "use_gpu", False))
    if isinstance(run.train, GradientTrainConfig) and not run.train.world_sizes:
        what = f"train.workers={run.train.workers} does not divide train.num_micro_batches={run.train.num_micro_batches}"
        findings.append(Finding("error", what, "change one of them (num_micro_batches changes the result, workers does not)"))
    return findings


def _check_memory(run: Run, data: PreparedData, nodes: list[Node], checkup: Checkup) -> list[Finding]:
    if not isinstance(run.train, GradientTrainConfig):
        return [Finding("ok", f"memory: training of kind '{run.train.kind}' has no ranks and is not estimated")]
    has_assets = exists(join_uri(run.run_uri, "assets", "done.json"))
    assets = read_assets_of(run.run_uri) if has_assets else learn_assets(run.model.encoders, data)
    usable = [node for node in nodes if num_places(node, run.train.cpus_per_worker, run.train.use_gpu)]
    smallest = min(usable, key=lambda node: node.memory_bytes, default=None)
    ranks_per_node = -(-run.train.min_workers // max(1, len(usable)))
    place = Place(int(smallest.memory_bytes / ranks_per_node) if smallest else None, smallest.gpu_memory_bytes if smallest else None)
    checkup.memory, findings = check_memory(run.model, run.loss, run.train, run.stream, data, assets, run.seed, place)
    if checkup.memory is not None:
        checkup.memory.measured_peak_bytes = measured_peak(run.run_uri)
        findings += check_disk(checkup.memory.size, data.num_items + data.num_users, run.model.dimension, run.train, run.storage)
    return findings
