"""The application builder that Ray Serve imports: `serve run serve.app:app bundle=PATH [max_replicas=4 …]`.

Without `from __future__ import annotations`: Serve turns the arguments into the annotated pydantic class only when it can see the class.
"""

from ray.serve import Application

from medley.serving.deployments import ServeArgs, build_app


def app(args: ServeArgs) -> Application:
    """The ingress and the recommender of one bundle; the settings are those of `ServeArgs`."""
    return build_app(args)
