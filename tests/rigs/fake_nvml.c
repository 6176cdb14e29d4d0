/* A stand-in for the NVIDIA driver's library (soname libnvidia-ml.so.1), driven by the text file $STAND_IN_NVML.
 *
 * The file has one fact a line; "gpu" begins a GPU, and what follows describes it:
 *   err N            nvmlInit answers with this code          hang SECONDS     nvmlInit takes so long
 *   segfault         nvmlInit crashes                         driver VERSION
 *   gpu              a GPU begins                             gpu_err N        every query of this GPU answers N
 *   name TEXT        total BYTES      leak BYTES (held by no process)          reserved BYTES
 *   memory N         it answers N when asked for its memory   mode N           compute mode
 *   persistence N    temperature N    throttle BITS           ecc N            remap N (a reset is pending)
 *   mig N            1: the card is split into instances       parts N          so many of them
 *   display N        1: it drives a display
 *   proc PID BYTES|NA       a process that computes           draws PID BYTES|NA       one that draws
 * A listed process holds its memory only while it lives: ending a real process gives memory back.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int Return;
enum { OK = 0, INVALID = 2, TOO_SMALL = 7 };
typedef unsigned long long Bytes;
typedef struct { Bytes total, free, used; } Memory1;
typedef struct { unsigned version; Bytes total, reserved, free, used; } Memory2;
typedef struct { unsigned pid; Bytes used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { unsigned gpu, memory; } Rates;

#define MOST 32
#define UNKNOWN (~0ULL)
typedef struct {
    char name[96];
    Bytes total, leak, reserved;
    int err, memory_err, mode, persistence, temperature, ecc, remap, mig, parts, display;
    unsigned long long throttle;
    unsigned computing, drawing;
    Process compute[MOST], draw[MOST];
} Card;
static struct { char driver[80]; int err, segfault; unsigned hang, count; Card card[8]; } state;

static int lives(unsigned pid) {
    char path[64], stat[512];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    size_t length = fread(stat, 1, sizeof stat - 1, file);
    fclose(file);
    stat[length] = 0;
    char *end = strrchr(stat, ')');
    return end && end[2] != 'Z' && end[2] != 'X';
}

static void list(Process *processes, unsigned *count, unsigned pid, const char *used) {
    if (!lives(pid) || *count == MOST) return;
    Process *process = &processes[(*count)++];
    process->pid = pid;
    process->used = strcmp(used, "NA") ? strtoull(used, 0, 10) : UNKNOWN;
    process->gpu_instance = process->compute_instance = ~0u;
}

static void look(void) {
    memset(&state, 0, sizeof state);
    strcpy(state.driver, "580.95.05");
    const char *path = getenv("STAND_IN_NVML");
    FILE *file = path ? fopen(path, "r") : 0;
    if (!file) return;
    Card *card = &state.card[0];
    char line[256], word[128];
    unsigned pid;
    while (fgets(line, sizeof line, file)) {
        if (!strncmp(line, "gpu\n", 4)) {
            card = &state.card[state.count++];
            strcpy(card->name, "NVIDIA GeForce RTX 4080");
            card->total = 16720000000ULL;
            card->temperature = 45;
            card->persistence = 1;
        }
        sscanf(line, "err %d", &state.err);
        sscanf(line, "hang %u", &state.hang);
        if (!strncmp(line, "segfault", 8)) state.segfault = 1;
        sscanf(line, "driver %79s", state.driver);
        sscanf(line, "gpu_err %d", &card->err);
        sscanf(line, "name %95[^\n]", card->name);
        sscanf(line, "total %llu", &card->total);
        sscanf(line, "leak %llu", &card->leak);
        sscanf(line, "reserved %llu", &card->reserved);
        sscanf(line, "memory %d", &card->memory_err);
        sscanf(line, "mig %d", &card->mig);
        sscanf(line, "parts %d", &card->parts);
        sscanf(line, "display %d", &card->display);
        sscanf(line, "mode %d", &card->mode);
        sscanf(line, "persistence %d", &card->persistence);
        sscanf(line, "temperature %d", &card->temperature);
        sscanf(line, "throttle %llu", &card->throttle);
        sscanf(line, "ecc %d", &card->ecc);
        sscanf(line, "remap %d", &card->remap);
        if (sscanf(line, "proc %u %127s", &pid, word) == 2) list(card->compute, &card->computing, pid, word);
        if (sscanf(line, "draws %u %127s", &pid, word) == 2) list(card->draw, &card->drawing, pid, word);
    }
    fclose(file);
}

/* A part of a card has a handle too: 100 for each card, and its own number. */
static Card *card_of(void *handle) { size_t id = (size_t)handle; return &state.card[id < 100 ? id - 1 : id / 100 - 1]; }

/* Every query looks anew, so that a test may change the file, or end a process, at any time. */
#define ASK(handle) look(); Card *card = card_of(handle); if (card->err) return card->err

static Bytes used(const Card *card) {
    Bytes sum = card->leak;
    for (unsigned i = 0; i < card->computing; i++)
        if (card->compute[i].used != UNKNOWN) sum += card->compute[i].used;
    for (unsigned i = 0; i < card->drawing; i++) {
        int counted = card->draw[i].used == UNKNOWN;
        for (unsigned j = 0; j < card->computing; j++) counted |= card->compute[j].pid == card->draw[i].pid;
        if (!counted) sum += card->draw[i].used;
    }
    return sum;
}

Return nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    look();
    if (state.hang) sleep(state.hang);
    if (state.segfault) raise(11);
    return state.err;
}
Return nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
Return nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(Return code) { (void)code; return "an error of the stand-in"; }
Return nvmlSystemGetDriverVersion(char *text, unsigned size) { look(); snprintf(text, size, "%s", state.driver); return OK; }
Return nvmlSystemGetCudaDriverVersion(int *version) { *version = 13000; return OK; }
Return nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return OK; }
Return nvmlDeviceGetCount_v2(unsigned *count) { look(); *count = state.count; return OK; }
Return nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    look();
    *handle = (void *)(size_t)(index + 1);
    return index < state.count ? state.card[index].err : INVALID;
}
Return nvmlDeviceGetName(void *handle, char *text, unsigned size) { ASK(handle); snprintf(text, size, "%s", card->name); return OK; }
Return nvmlDeviceGetUUID(void *handle, char *text, unsigned size) {
    ASK(handle);
    (void)card;
    size_t id = (size_t)handle;
    if (id < 100) snprintf(text, size, "GPU-00000000-0000-0000-0000-%012zu", id - 1);
    else snprintf(text, size, "MIG-00000000-0000-0000-%04zu-%012zu", id / 100 - 1, id % 100);
    return OK;
}
Return nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) { ASK(handle); *count = card->mig ? 7 : 0; return OK; }
Return nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **part) {
    ASK(handle);
    *part = (void *)((size_t)handle * 100 + index);
    return (int)index < card->parts ? OK : INVALID;
}
Return nvmlDeviceGetDisplayActive(void *handle, int *active) { ASK(handle); *active = card->display; return OK; }
Return nvmlDeviceGetMemoryInfo(void *handle, Memory1 *memory) {
    ASK(handle);
    if (card->memory_err) return card->memory_err;
    memory->total = card->total;
    memory->used = used(card) + card->reserved;
    memory->free = card->total - memory->used;
    return OK;
}
Return nvmlDeviceGetMemoryInfo_v2(void *handle, Memory2 *memory) {
    ASK(handle);
    if (card->memory_err) return card->memory_err;
    memory->total = card->total;
    memory->reserved = card->reserved;
    memory->used = used(card);
    memory->free = card->total - memory->used - card->reserved;
    return OK;
}
static Return copy(unsigned *count, Process *target, const Process *source, unsigned found) {
    unsigned room = *count;
    *count = found;
    if (!found) return OK;
    if (room < found || !target) return TOO_SMALL;
    memcpy(target, source, found * sizeof *source);
    return OK;
}
Return nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *target) {
    ASK(handle);
    return copy(count, target, card->compute, card->computing);
}
Return nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, Process *target) {
    ASK(handle);
    return copy(count, target, card->draw, card->drawing);
}
Return nvmlDeviceGetPersistenceMode(void *handle, int *mode) { ASK(handle); *mode = card->persistence; return OK; }
Return nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *next) { ASK(handle); *now = *next = card->mig; return OK; }
Return nvmlDeviceGetComputeMode(void *handle, int *mode) { ASK(handle); *mode = card->mode; return OK; }
Return nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *degrees) { (void)sensor; ASK(handle); *degrees = card->temperature; return OK; }
Return nvmlDeviceGetUtilizationRates(void *handle, Rates *rates) { ASK(handle); rates->gpu = card->computing ? 97 : 0; rates->memory = 0; return OK; }
Return nvmlDeviceGetCurrentClocksEventReasons(void *handle, unsigned long long *reasons) { ASK(handle); *reasons = card->throttle; return OK; }
Return nvmlDeviceGetTotalEccErrors(void *handle, int kind, int counter, unsigned long long *errors) {
    (void)kind, (void)counter;
    ASK(handle);
    *errors = card->ecc;
    return OK;
}
Return nvmlDeviceGetRemappedRows(void *handle, unsigned *correctable, unsigned *uncorrectable, unsigned *pending, unsigned *failed) {
    ASK(handle);
    *correctable = *uncorrectable = *failed = 0;
    *pending = card->remap;
    return OK;
}
