# A job that fails leaves its earlier outputs, and Snakemake's record of what made them, as they were.
#
# Snakemake deletes the outputs of a job before it starts, unless they are marked with update(): those it copies, and
# copies back if the job fails. But it copies with new dates, so that all that was made from them looks outdated, and
# it records that the failed job has made them, so that the next run has "nothing to do". The functions here keep the
# dates and the record. A rule with update() must write its outputs atomically, or move them into place (seam.outputs).

import shutil

from snakemake.persistence import FileBackupMixin, PersistenceBase


def stamp(path):
    """Return what tells one version of a file from another."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def backup_with_dates(self, path):
    """Copy a file, with its dates, before a job that may replace it. A full disk must not keep the job from running.

    A folder is not copied, because it can be large: its job replaces it as a whole, by a folder of the same name.
    """
    if path.is_dir():
        return
    copy = self._get_backup_path(path)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    except OSError:
        copy.unlink(missing_ok=True)


def restore_with_dates(self, path):
    """Return whether the file is as it was before the job that failed; copy it back if the job has replaced it."""
    copy, key = self._get_backup_path(path), str(path)
    if copy.exists():
        if not path.exists() or stamp(path) != stamp(copy):
            shutil.copy2(copy, path)
        copy.unlink()
    else:  # a folder; or on a cluster, the Snakemake on the node has restored it, or the job has not begun
        started = self._get_recorded_starttime(key)
        if started is None or not path.exists() or path.stat().st_mtime >= started:
            return False
    self.__dict__.setdefault("seam_kept", set()).add(key)
    return True


async def finished_or_kept(self, job):
    """Record what made the outputs of a job, unless it has failed and they are those of an earlier job."""
    keys = {str(file) for file in job.output}
    kept = self.__dict__.setdefault("seam_kept", set())
    if not kept & keys:
        return await finished_of_snakemake(self, job)
    kept -= keys
    self._clear_cache()
    for key in keys:
        self._unmark_incomplete(key)


if not hasattr(PersistenceBase, "seam_keeps_results"):  # once for each process
    finished_of_snakemake = PersistenceBase.finished
    PersistenceBase.backup_output = backup_with_dates
    PersistenceBase.restore_output = restore_with_dates
    PersistenceBase.finished = finished_or_kept
    PersistenceBase.seam_keeps_results = True
