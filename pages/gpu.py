"""Memory: now, and before and after each job's end."""

import streamlit as st

from backend import runtime
from backend.models import Cleanup, JobStatus
from backend.views import DeviceView, JobFilter
from pages.parts import bars, cards, cleanups, formats, trouble
from pages.parts.live import watch

BARS = 12


@trouble.told()
def memory() -> None:
    """Live memory of each device, or of the host."""
    machine = runtime.service().machine()
    if machine.source == "host":
        note = machine.note or "No GPU was found, so the memory of the host is shown instead."
        st.caption(f":material/developer_board: {formats.escape(note, 300)}")
    elif machine.note:
        st.caption(formats.escape(machine.note, 300))
    with st.grid(2, min_column_width=360):
        for device in machine.devices:
            device_card(device)
    users()


def users() -> None:
    """What each running job uses of it."""
    running = JobFilter(statuses=frozenset({JobStatus.RUNNING}), descending=False)
    for job in runtime.service().jobs(running).jobs:
        if job.memory_bytes is None:
            used = "not measured yet"
        else:
            peak = job.peak_memory_bytes or job.memory_bytes
            used = f"uses {formats.size(job.memory_bytes)} now, {formats.size(peak)} at its peak"
        with st.container(horizontal=True, vertical_alignment="center"):
            cards.job_link(job)
            st.caption(used, width="content")


def device_card(device: DeviceView) -> None:
    with st.container(border=True, gap="small", key=f"device-{device.index}"):
        number = "" if device.index is None else f"GPU {device.index} · "
        with st.container(horizontal=True, vertical_alignment="center"):
            st.subheader(number + formats.escape(device.name), anchor=False)
            if device.leased_by is not None:
                st.page_link(
                    "job.py",
                    label=f"job {device.leased_by}",
                    icon=":material/play_arrow:",
                    query_params={"id": str(device.leased_by)},
                )
        if device.used_bytes is None or not device.total_bytes:
            st.text("The driver does not say how much memory is in use.")
        else:
            share = min(1.0, device.used_bytes / device.total_bytes)
            used, total = formats.size(device.used_bytes), formats.size(device.total_bytes)
            st.progress(share, text=f"{used} of {total} in use ({share:.0%})")
        for holder in device.holders:
            st.caption(formats.escape(cleanups.held(holder)))


def empty_cache() -> None:
    """Do it now, and keep its figures for the run that follows the click."""
    st.session_state["emptied"] = None
    st.session_state["emptied"] = runtime.service().empty_cache()


def emptied() -> None:
    """What the last click of the button gave back."""
    cleanup: Cleanup | None = st.session_state.get("emptied")
    if cleanup is None:
        return
    if cleanup.cache_freed_bytes is None:
        words = "Garbage was collected. There is no CUDA cache here, so there was nothing to empty."
    else:
        words = f"Emptying the cache gave back {formats.size(cleanup.cache_freed_bytes)}."
    if cleanup.before_bytes is not None and cleanup.after_bytes is not None:
        before, after = formats.size(cleanup.before_bytes), formats.size(cleanup.after_bytes)
        words += f" The server itself held {before} before and {after} after."
    st.success(words, icon=":material/check:")


def done() -> None:
    """Every cleanup as a pair of bars and as a row."""
    rows = runtime.service().cleanups(limit=100)
    if not rows:
        st.text(
            "No cleanup yet. When a job ends, its memory just before and just after is shown here."
        )
        return
    measured = [c for c in rows if c.before_bytes is not None and c.after_bytes is not None]
    if measured:
        bars.pairs([cleanups.pair_of(c) for c in measured[:BARS]])
    cleanups.table(rows)


st.title("GPU")
st.fragment(memory, run_every=2)()
st.button(
    "Empty cache now",
    key="empty-cache",
    icon=":material/mop:",
    on_click=trouble.acting("empty-cache", "Its figures were not kept", empty_cache),
    help="Runs gc.collect() and torch.cuda.empty_cache() in the server",
)
trouble.said("empty-cache")
emptied()
st.caption(
    "Two different things give memory back. A job's end returns all that its processes held: that "
    "is the drop from before to after. Emptying the cache returns only what the server's own "
    "allocator kept, which is usually nothing: trainings run in processes of their own."
)
st.header("Cleanups")
watch(lambda: [c.id for c in runtime.service().cleanups(limit=1)])
done()
