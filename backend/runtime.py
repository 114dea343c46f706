"""The one running Service of this process."""

from backend.service import Service

_service: Service | None = None


class NotRunningError(RuntimeError):
    """No backend was started in this process."""


def use(service: Service | None) -> None:
    """Make this the Service that `service()` answers with; None: there is none any more."""
    global _service
    _service = service


def service() -> Service:
    """The running Service.

    Raises:
        NotRunningError: the app was not started through app.py.
    """
    if _service is None:
        raise NotRunningError("Start Signalbox with: python -m streamlit run app.py")
    return _service
