# fewstep on the CPU:  docker build -t fewstep .  &&  docker run --rm -p 127.0.0.1:7860:7860 fewstep
# shows the page of fewstep app at http://127.0.0.1:7860. Other commands: docker run --rm -v "$PWD:/work" -w /work fewstep generate ...
FROM python:3.12-slim

RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*

# Where pip looks for packages, for networks that have a mirror: --build-arg PIP_INDEX_URL=...
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_NO_CACHE_DIR=1

WORKDIR /fewstep
COPY . .
RUN make setup

ENV PATH=/fewstep/.venv/bin:$PATH
EXPOSE 7860
ENTRYPOINT ["fewstep"]
CMD ["app", "--host", "0.0.0.0", "--no-open"]
