"""The pipeline as YAML: golden files, written by `make generate` and compared by the tests."""

from pathlib import Path

from pipelines.kubeflow.sdk import import_kfp

FOLDER = Path(__file__).parent


def compile_pipeline(output: str | Path) -> None:
    """Write the pipeline as the YAML that Kubeflow takes, with the placeholder for its image."""
    import_kfp()
    from kfp.compiler import Compiler

    from pipelines.kubeflow.definition import firstsight

    Compiler().compile(firstsight, str(output))
