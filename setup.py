"""Packaging of pushdemo; the tools' settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

# What an application that includes the add-on can do without.
OPERATIONS = ["prometheus_client>=0.20"]
DEMO = [*OPERATIONS, "psutil>=5.9", "pygal>=3.0.5", "pyramid_jinja2>=2.10"]
DOCS = ["furo", "myst-parser", "sphinx", "sphinxcontrib-mermaid"]
REDIS = ["redis[hiredis]>=5.3"]

setup(
    name="pushdemo",
    version="0.1.0",
    description="Server push for Pyramid: live pages, json_yield and memorize, without a thread a client",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="pushdemo contributors",
    license="MIT",
    license_files=["LICENSE"],
    keywords="pyramid waitress server push sse multipart long polling",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: Pyramid",
        "Intended Audience :: Developers",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Internet :: WWW/HTTP :: Dynamic Content",
        "Topic :: Internet :: WWW/HTTP :: WSGI",
        "Topic :: Internet :: WWW/HTTP :: WSGI :: Server",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_namespace_packages(include=["pushdemo", "pushdemo.*"]),
    include_package_data=True,
    zip_safe=False,
    install_requires=["pyramid>=2.0.2", "waitress>=3.0.2,<4", "cachetools>=5.5"],
    extras_require={
        "demo": DEMO,
        "docs": DOCS,
        "operations": OPERATIONS,
        "redis": REDIS,
        "testing": [
            *DEMO,
            *DOCS,
            *REDIS,
            "build",
            "celery",
            "check-manifest",
            "gevent",
            "gunicorn",
            "hypothesis",
            "opentelemetry-instrumentation-pyramid",
            "opentelemetry-instrumentation-wsgi",
            "opentelemetry-sdk",
            "httpx",
            "httpx-sse",
            "pyramid_debugtoolbar",
            "pyramid_retry",
            "pyramid_tm",
            "pytest",
            "requests",
            "selenium",
            "sentry-sdk",
            "setuptools>=68",
            "sqlalchemy",
            "sseclient-py",
            "twine",
            "webtest",
            "werkzeug",
            "zope.sqlalchemy",
        ],
    },
    entry_points={
        "console_scripts": [
            "pushdemo-check = pushdemo.check:main",
            "pushdemo-publish = pushdemo.publisher:main",
        ],
        "paste.app_factory": ["main = pushdemo.demo:main"],
        "paste.server_runner": ["main = pushdemo.server:main"],
    },
)
