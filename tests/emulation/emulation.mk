# The CUDA kernels on the processor (tests/emulation), and through nvcc. Included by the Makefile.
#
# Three builds of the same files: plain; asan (addresses and undefined behaviour); race, whose
# loads and stores report to the race detector (g++ calls it where it would call libtsan).
CUDA_HOME ?= /usr/local/cuda
EMULATION := $(BUILD)/emulation
MODES := plain asan race
EMULATION_FLAGS := -std=c++17 -g -fno-omit-frame-pointer -fPIC -Wall -Wextra -Wno-unknown-pragmas \
  -Wno-maybe-uninitialized -Wno-psabi -isystem $(CUDA_HOME)/include -Icsrc/kernels -Itests/emulation \
  -Itests/kernels
ASAN := -fsanitize=address,undefined -fno-sanitize-recover=undefined
DEVICE_FLAGS_plain := -O2
DEVICE_FLAGS_asan := -O1 $(ASAN)
DEVICE_FLAGS_race := -O1 -fsanitize=thread
DEVICE_FLAGS_coverage := -O0 --coverage
HOST_FLAGS_plain := -O2
HOST_FLAGS_asan := -O1 $(ASAN)
HOST_FLAGS_race := -O2 -DCUEMU_RACE
HOST_FLAGS_coverage := -O2
LINK_FLAGS_asan := $(ASAN)
LINK_FLAGS_coverage := --coverage
# Cases are dealt out to five orders; under the sanitizers one random order is enough.
RUN_plain :=
RUN_asan := 1 2 1
RUN_race :=
RUN_coverage :=

KERNELS := $(sort $(wildcard csrc/kernels/*.cu))
FAULTS := $(sort $(wildcard tests/emulation/faults/*.cu))
RUNTIME := $(sort $(filter-out tests/emulation/test_%,$(wildcard tests/emulation/*.cpp)))
KERNEL_TESTS := $(sort $(wildcard tests/kernels/test_*.cpp tests/emulation/test_*.cpp))
object = $(addsuffix .o,$(addprefix $(EMULATION)/$(1)/,$(2)))

# Objects appear under their names only when complete, so that several builds may run at once.
define emulation_rules
$(EMULATION)/$(1)/%.cu.o: %.cu
	@mkdir -p $$(@D)
	@$(CXX) $$(EMULATION_FLAGS) $$(DEVICE_FLAGS_$(1)) -MMD -MP -MT $$@ -MF $$@.d -x c++ -c $$< -o $$@.$$$$$$$$ && mv $$@.$$$$$$$$ $$@
$(EMULATION)/$(1)/%.cpp.o: %.cpp
	@mkdir -p $$(@D)
	@$(CXX) $$(EMULATION_FLAGS) $$(HOST_FLAGS_$(1)) -MMD -MP -MT $$@ -MF $$@.d -c $$< -o $$@.$$$$$$$$ && mv $$@.$$$$$$$$ $$@
$(EMULATION)/$(1)/libkernels.a: $(call object,$(1),$(KERNELS))
	@rm -f $$@ && ar rcs $$@ $$^
$(EMULATION)/$(1)/libruntime.a: $(call object,$(1),$(RUNTIME))
	@rm -f $$@ && ar rcs $$@ $$^
$(EMULATION)/$(1)/libfaults.a: $(call object,$(1),$(FAULTS))
	@rm -f $$@ && ar rcs $$@ $$^
# A test finds its kernels in the library, which gives only what is asked for.
$(EMULATION)/$(1)/test_%: $(EMULATION)/$(1)/tests/kernels/test_%.cpp.o $(EMULATION)/$(1)/libkernels.a $(EMULATION)/$(1)/libruntime.a
	@$(CXX) $$(LINK_FLAGS_$(1)) $$^ -ldl -o $$@
$(EMULATION)/$(1)/test_%: $(EMULATION)/$(1)/tests/emulation/test_%.cpp.o $(EMULATION)/$(1)/libfaults.a $(EMULATION)/$(1)/libruntime.a
	@$(CXX) $$(LINK_FLAGS_$(1)) $$^ -ldl -o $$@
run-$(1)-%: $(EMULATION)/$(1)/test_% always
	@tests/emulation/run_test.sh $(1) $$* $$< $$(RUN_$(1))
-include $(wildcard $(EMULATION)/$(1)/csrc/kernels/*.d $(EMULATION)/$(1)/tests/*/*.d $(EMULATION)/$(1)/tests/emulation/faults/*.d)
endef
$(foreach mode,$(MODES) coverage,$(eval $(call emulation_rules,$(mode))))
# These tests have kernels of their own.
$(EMULATION)/race/tests/kernels/test_conformance%.o: HOST_FLAGS_race += -fsanitize=thread

.PHONY: always
always:
.SECONDARY:

# One program from the sources in SOURCES (test and kernels), for tests/emulation/build.sh.
$(EMULATION)/$(MODE)/program: $(call object,$(MODE),$(SOURCES)) $(EMULATION)/$(MODE)/libruntime.a
	@$(CXX) $(LINK_FLAGS_$(MODE)) $^ -ldl -o $(OUT)
.PHONY: $(EMULATION)/$(MODE)/program

.PHONY: test-emulation test-emulation-runs
test-emulation:
ifeq ($(wildcard $(CUDA_HOME)/include/cuda_bf16.h),)
	@echo "== CUDA kernels on the processor: skipped, no CUDA headers in $(CUDA_HOME)/include"
else
	@echo "== CUDA kernels on the processor: plain, under sanitizers, under the race detector"
	@$(MAKE) --no-print-directory -j2 test-emulation-runs
endif
test-emulation-runs: $(foreach mode,race asan plain,$(patsubst test_%.cpp,run-$(mode)-%,$(notdir $(KERNEL_TESTS))))
