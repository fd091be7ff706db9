/* A stand-in for NVIDIA's libnvidia-ml.so.1, for machines without a card: it answers what a file says.
 *
 * Every name that it gives holds the word SIMULATED, so that no display can show its cards for real ones. It computes
 * nothing and knows nothing of a driver. What is not here answers "not supported" (simulated-nvml-rest.c, generated from
 * nvml.h: callers find all that the header promises).
 *
 * /run/onprem-gpu/simulated holds a line for the driver that is loaded and one for each card, its fields parted by tabs:
 *     driver <version> <version of the libraries> <CUDA version as 1000*major + 10*minor>
 *     card <model> <memory in MiB> <compute capability major> <minor> <UUID> <PCI bus id>
 * Where the two versions differ it fails as the real library does. A card falls off its bus when
 * /run/onprem-gpu/lost-<index> is there. While /run/onprem-gpu/hung is there no call that touches a card returns, as with
 * a driver that hangs.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nvml.h"

#define CARDS 16
#define TEXT 80

struct nvmlDevice_st {
    unsigned int index;
    char name[TEXT], uuid[TEXT], bus[NVML_DEVICE_PCI_BUS_ID_BUFFER_SIZE];
    unsigned long long memory;
    int major, minor;
};

static struct nvmlDevice_st cards[CARDS];
static unsigned int count;
static char driver[TEXT], libraries[TEXT];
static int cuda, started;

static nvmlReturn_t copied(char *target, unsigned int length, const char *text)
{
    if (!started) return NVML_ERROR_UNINITIALIZED;
    if (target == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (strlen(text) >= length) return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(target, text);
    return NVML_SUCCESS;
}

static int lost(unsigned int index)
{
    char path[TEXT];
    while (access("/run/onprem-gpu/hung", F_OK) == 0) usleep(100 * 1000);
    snprintf(path, sizeof path, "/run/onprem-gpu/lost-%u", index);
    return access(path, F_OK) == 0;
}

/* What packages have laid down since the driver was loaded counts, as it does for a program that loads a library now. */
static void look_at_packages(void)
{
    char target[TEXT];
    const char *name = "libnvidia-ml.so.";
    ssize_t length = readlink("/usr/lib/x86_64-linux-gnu/nvidia/current/libnvidia-ml.so.1", target, sizeof target - 1);
    if (length <= (ssize_t)strlen(name)) return;
    target[length] = '\0';
    strcpy(libraries, target + strlen(name));
}

static nvmlReturn_t usable(nvmlDevice_t card)
{
    if (!started) return NVML_ERROR_UNINITIALIZED;
    if (card == NULL || card < cards || card >= cards + count) return NVML_ERROR_INVALID_ARGUMENT;
    return lost(card->index) ? NVML_ERROR_GPU_IS_LOST : NVML_SUCCESS;
}

#define NEEDS(card)                          \
    do {                                     \
        nvmlReturn_t is = usable(card);      \
        if (is != NVML_SUCCESS) return is;   \
    } while (0)

/* --- the library */

static void add_card(char *line)
{
    struct nvmlDevice_st *card = &cards[count];
    char model[TEXT - sizeof " SIMULATED"];
    unsigned long long mebibytes;
    if (count == CARDS) return;
    if (sscanf(line, "card\t%68[^\t]\t%llu\t%d\t%d\t%79[^\t]\t%31s", model, &mebibytes, &card->major, &card->minor,
               card->uuid, card->bus) != 6)
        return;
    snprintf(card->name, sizeof card->name, "%s SIMULATED", model);
    card->memory = mebibytes << 20;
    card->index = count++;
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    char line[512];
    FILE *file = fopen("/run/onprem-gpu/simulated", "r");
    (void)flags;
    if (file == NULL) return NVML_ERROR_DRIVER_NOT_LOADED;
    count = 0;
    driver[0] = '\0';
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "driver\t", 7) == 0)
            sscanf(line, "driver\t%79[^\t]\t%79[^\t]\t%d", driver, libraries, &cuda);
        else if (strncmp(line, "card\t", 5) == 0)
            add_card(line);
    }
    fclose(file);
    if (driver[0] == '\0') return NVML_ERROR_DRIVER_NOT_LOADED;
    look_at_packages();
    if (strcmp(driver, libraries) != 0) return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    started = 1;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

nvmlReturn_t nvmlShutdown(void) { return NVML_SUCCESS; }

const char *nvmlErrorString(nvmlReturn_t result)
{
    switch (result) {
    case NVML_SUCCESS: return "Success (SIMULATED)";
    case NVML_ERROR_UNINITIALIZED: return "Uninitialized (SIMULATED)";
    case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument (SIMULATED)";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported (SIMULATED)";
    case NVML_ERROR_NOT_FOUND: return "Not Found (SIMULATED)";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded (SIMULATED)";
    case NVML_ERROR_LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch (SIMULATED)";
    case NVML_ERROR_TIMEOUT: return "Timeout (SIMULATED)";
    case NVML_ERROR_GPU_IS_LOST: return "GPU is lost (SIMULATED)";
    default: return "Error (SIMULATED)";
    }
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) { return copied(version, length, driver); }

nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length) { return copied(version, length, libraries); }

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
    if (!started) return NVML_ERROR_UNINITIALIZED;
    *version = cuda;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }

/* --- finding cards */

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *found)
{
    if (!started) return NVML_ERROR_UNINITIALIZED;
    *found = count;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *card)
{
    if (!started) return NVML_ERROR_UNINITIALIZED;
    if (index >= count) return NVML_ERROR_INVALID_ARGUMENT;
    *card = &cards[index];
    return lost(index) ? NVML_ERROR_GPU_IS_LOST : NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *card)
{
    for (unsigned int index = 0; index < count; index++)
        if (strcmp(cards[index].uuid, uuid) == 0) return nvmlDeviceGetHandleByIndex_v2(index, card);
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus, nvmlDevice_t *card)
{
    for (unsigned int index = 0; index < count; index++)
        if (strcasecmp(cards[index].bus, bus) == 0) return nvmlDeviceGetHandleByIndex_v2(index, card);
    return NVML_ERROR_NOT_FOUND;
}

/* --- what a card is */

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t card, char *name, unsigned int length)
{
    NEEDS(card);
    return copied(name, length, card->name);
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t card, char *uuid, unsigned int length)
{
    NEEDS(card);
    return copied(uuid, length, card->uuid);
}

nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t card, char *serial, unsigned int length)
{
    NEEDS(card);
    return copied(serial, length, "SIMULATED");
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t card, unsigned int *index)
{
    NEEDS(card);
    *index = card->index;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t card, unsigned int *number) { return nvmlDeviceGetIndex(card, number); }

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t card, nvmlPciInfo_t *pci)
{
    NEEDS(card);
    memset(pci, 0, sizeof *pci);
    snprintf(pci->busId, sizeof pci->busId, "%s", card->bus);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%s", card->bus + (strlen(card->bus) > 12 ? 4 : 0));
    sscanf(card->bus, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device);
    pci->pciDeviceId = 0x10de;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t card, int *major, int *minor)
{
    NEEDS(card);
    *major = card->major;
    *minor = card->minor;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t card, nvmlDeviceArchitecture_t *architecture)
{
    NEEDS(card);
    *architecture = card->major >= 10  ? NVML_DEVICE_ARCH_BLACKWELL
                    : card->major == 9 ? NVML_DEVICE_ARCH_HOPPER
                    : card->major == 8 ? (card->minor == 9 ? NVML_DEVICE_ARCH_ADA : NVML_DEVICE_ARCH_AMPERE)
                    : card->minor == 5 ? NVML_DEVICE_ARCH_TURING
                                       : NVML_DEVICE_ARCH_VOLTA;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetBrand(nvmlDevice_t card, nvmlBrandType_t *brand)
{
    NEEDS(card);
    *brand = NVML_BRAND_NVIDIA;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t card, unsigned int *is)
{
    NEEDS(card);
    *is = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t card, unsigned int *found)
{
    NEEDS(card);
    *found = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t one, nvmlDevice_t other, nvmlGpuTopologyLevel_t *level)
{
    NEEDS(one);
    NEEDS(other);
    *level = NVML_TOPOLOGY_SYSTEM;
    return NVML_SUCCESS;
}

/* --- how it is: at rest, and always the same */

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t card, nvmlMemory_t *memory)
{
    NEEDS(card);
    memory->total = memory->free = card->memory;
    memory->used = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t card, nvmlMemory_v2_t *memory)
{
    NEEDS(card);
    memory->total = memory->free = card->memory;
    memory->used = memory->reserved = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t card, nvmlUtilization_t *utilization)
{
    NEEDS(card);
    utilization->gpu = utilization->memory = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t card, nvmlTemperatureSensors_t sensor, unsigned int *celsius)
{
    NEEDS(card);
    (void)sensor;
    *celsius = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t card, unsigned int *milliwatts)
{
    NEEDS(card);
    *milliwatts = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t card, nvmlEnableState_t *mode)
{
    NEEDS(card);
    *mode = NVML_FEATURE_ENABLED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t card, nvmlComputeMode_t *mode)
{
    NEEDS(card);
    *mode = NVML_COMPUTEMODE_DEFAULT;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t card, unsigned int *found, nvmlProcessInfo_t *processes)
{
    NEEDS(card);
    (void)processes;
    *found = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t card, unsigned int *found, nvmlProcessInfo_t *processes)
{
    return nvmlDeviceGetComputeRunningProcesses_v3(card, found, processes);
}

/* --- events: a card that falls off its bus is Xid 79 */

struct nvmlEventSet_st {
    unsigned int watched, told;
};

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set)
{
    *set = calloc(1, sizeof **set);
    return *set == NULL ? NVML_ERROR_MEMORY : NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set)
{
    free(set);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t card, unsigned long long *types)
{
    NEEDS(card);
    *types = nvmlEventTypeXidCriticalError;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t card, unsigned long long types, nvmlEventSet_t set)
{
    NEEDS(card);
    if (types & ~(unsigned long long)nvmlEventTypeXidCriticalError) return NVML_ERROR_NOT_SUPPORTED;
    set->watched |= 1u << card->index;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *event, unsigned int milliseconds)
{
    for (unsigned int waited = 0;; waited += 100) {
        for (unsigned int index = 0; index < count; index++) {
            unsigned int bit = 1u << index;
            if ((set->watched & ~set->told & bit) && lost(index)) {
                set->told |= bit;
                memset(event, 0, sizeof *event);
                event->device = &cards[index];
                event->eventType = nvmlEventTypeXidCriticalError;
                event->eventData = 79;
                event->gpuInstanceId = event->computeInstanceId = 0xFFFFFFFF;
                return NVML_SUCCESS;
            }
        }
        if (waited >= milliseconds) return NVML_ERROR_TIMEOUT;
        usleep(100 * 1000);
    }
}
