// Findings: one per kind and place, with a count.
#include <stdio.h>
#include <string.h>

#include "state.h"

// Headers of the library are known by their names alone; whole paths would not fit.
static const char* file_name(const char* path) {
  const char* slash = path ? strrchr(path, '/') : nullptr;
  return slash ? slash + 1 : path ? path : "";
}

static bool is_same(const msl_finding& finding, msl_kind kind, Place place, const char* buffer,
                    int other_line) {
  return finding.kind == kind && finding.line == place.line && finding.column == place.column &&
         finding.other_line == other_line &&
         strncmp(finding.buffer, buffer, sizeof finding.buffer - 1) == 0 &&
         strncmp(finding.file, place.file, sizeof finding.file - 1) == 0;
}

void report(msl_kind kind, Place place, const char* buffer, int64_t offset, const char* message,
            Conflict conflict) {
  place.file = file_name(place.file);
  msl_result* result = launch.result;
  for (uint32_t i = 0; i < result->findings; ++i) {
    if (is_same(launch.findings[i], kind, place, buffer, conflict.line)) {
      launch.findings[i].count++;
      return;
    }
  }
  if (result->findings >= launch.max_findings) {
    return;
  }
  msl_finding& finding = launch.findings[result->findings++];
  memset(&finding, 0, sizeof finding);
  finding.kind = kind;
  finding.line = place.line;
  finding.column = place.column;
  finding.other_line = conflict.line;
  finding.thread = launch.current ? launch.current->thread.index_in_threadgroup : kNone;
  finding.other_thread = conflict.thread;
  finding.count = 1;
  finding.offset = offset;
  memcpy(finding.threadgroup, launch.threadgroup_position, sizeof finding.threadgroup);
  snprintf(finding.file, sizeof finding.file, "%s", place.file);
  snprintf(finding.buffer, sizeof finding.buffer, "%s", buffer);
  snprintf(finding.message, sizeof finding.message, "%s", message);
}
